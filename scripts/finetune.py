"""Fine-tune a trained LlamaForCausalLM to 1.58 bits: ternary weights and int8 activations in every linear layer but the head.

    python scripts/smollm2_folder.py build/smollm2
    python scripts/finetune.py build/smollm2 --out build/smollm2-bit --minutes 60 --compile
    bitnet convert build/smollm2-bit/packed

In: a Hugging Face folder (config.json, model.safetensors, tokenizer.json) and text: `scripts/corpus.py`'s, or --train and --heldout.
Out, under --out: `packed/` (the packed `bitnet` flavour with tokenizer and chat template), `checkpoint.safetensors` (float masters and
optimizer state; --resume continues from it), `log.jsonl` (one line an evaluation: lambda, perplexity and its standard error, tokens seen).

Method: Hugging Face's warm-up quantization (bit_linear.py) with lambda rising linearly over the first --mix-warm-up of the run, and
logit distillation from the float model that it started from: loss = (1 - D) * cross entropy + D * T² * KL(teacher || student), both
softmaxes at temperature T (Hinton et al., arXiv 1503.02531). --distil 0 does without the teacher and its forward pass.
"""

import argparse
import json
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import corpus
import numpy as np
import torch
import torch.nn.functional as F
from bit_linear import mix_at, replace_linears, set_dtype
from llama_folder import save_packed
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from train import faster_type
from transformers import AutoTokenizer, LlamaForCausalLM


def arguments(given: list[str] | None = None) -> argparse.Namespace:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("model", type=Path, help="folder of a LlamaForCausalLM")
    p.add_argument("--out", type=Path, required=True)
    p.add_argument("--corpus", type=Path, default=Path("build/corpus"), help="folder of train.txt and heldout.txt; made when absent")
    p.add_argument("--train", type=Path, nargs="+", help="text files instead of the corpus's train.txt")
    p.add_argument("--heldout", type=Path, nargs="+", help="text files instead of the corpus's heldout.txt")
    p.add_argument("--steps", type=int, default=2000)
    p.add_argument("--minutes", type=float, default=math.inf, help="finish the schedule by then even if slower than planned")
    p.add_argument("--batch", type=int, default=4, help="sequences a step")
    p.add_argument("--micro-batch", type=int, default=4, help="sequences a forward pass")
    p.add_argument("--length", type=int, default=256, help="tokens a sequence, in training and in evaluation")
    p.add_argument("--lr", type=float, default=5e-4, help="peak; rises over the first 3 %% and then falls linearly to 0")
    p.add_argument("--mix-warm-up", type=float, default=0.2, help="share of the run in which lambda rises from 0 to 1")
    p.add_argument("--distil", type=float, default=0.5, metavar="D", help="weight of the distillation loss, 0 to 1")
    p.add_argument("--temperature", type=float, default=1.0, metavar="T", help="of both softmaxes in the distillation loss")
    p.add_argument("--windows", type=int, default=128, help="held-out windows an evaluation reads, evenly spread; 0: all")
    p.add_argument("--evaluate-every", type=int, default=200, metavar="STEPS")
    p.add_argument("--save-minutes", type=float, default=5.0, help="between checkpoints")
    p.add_argument("--threads", type=int, default=0)
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--resume", action="store_true", help="go on from checkpoint.safetensors")
    p.add_argument("--compile", action="store_true", help="torch.compile both models (needs a C++ compiler)")
    return p.parse_args(given)


def tokens_of(files: list[Path], tokenizer: Any) -> Tensor:
    """Ids of all documents of `files`, each after the separator's token, or the end token where the vocabulary has no separator."""
    end = tokenizer.get_vocab().get(corpus.SEPARATOR, tokenizer.eos_token_id)
    documents = [d for file in files for d in file.read_text(encoding="utf-8").split(corpus.SEPARATOR)]
    encoded = tokenizer(documents, add_special_tokens=False, return_attention_mask=False, verbose=False)["input_ids"]
    return torch.tensor([i for ids in encoded for i in (end, *ids)])


def spread_windows(ids: Tensor, length: int, count: int) -> Tensor:
    """(windows, length + 1) ids: windows that do not overlap but for the one id that is only predicted. 0 or too large a count: all."""
    total = (len(ids) - 1) // length
    chosen = range(total) if not 0 < count < total else [i * total // count for i in range(count)]
    return torch.stack([ids[i * length : (i + 1) * length + 1] for i in chosen])


@dataclass(frozen=True)
class Perplexity:
    """Over `tokens` predictions. `error` is the standard error of `nats` from the spread between windows."""

    nats: float
    error: float
    tokens: int

    def row(self) -> dict[str, float]:
        value = math.exp(self.nats)
        return {"perplexity": value, "perplexity_error": value * self.error, "nats": self.nats, "nats_error": self.error, "of": self.tokens}


class Head(nn.Module):
    """(batch, length) ids -> (batch * length, vocabulary) logits in the model's own arithmetic. LlamaForCausalLM without its loss code."""

    def __init__(self, model: LlamaForCausalLM):
        super().__init__()
        self.model = model

    def forward(self, ids: Tensor) -> Tensor:
        hidden = self.model.model(input_ids=ids, use_cache=False).last_hidden_state
        return self.model.lm_head(hidden.flatten(0, 1))


def distillation_loss(student: Tensor, teacher: Tensor | None, targets: Tensor, weight: float, temperature: float) -> Tensor:
    """Mean nats over tokens. student, teacher: (tokens, vocabulary) logits; targets: (tokens,). teacher None: cross entropy alone."""
    student = student.float()
    loss = F.cross_entropy(student, targets)
    if teacher is None:
        return loss
    goal = F.log_softmax(teacher.float() / temperature, -1)
    ours = F.log_softmax(student / temperature, -1)
    divergence = (goal.exp() * (goal - ours)).sum(-1).mean()
    return (1 - weight) * loss + weight * temperature**2 * divergence


class Tuning:
    """Student, teacher, optimizer and position of one run. `dtype` is the training matmuls'."""

    def __init__(self, args: argparse.Namespace):
        torch.manual_seed(args.seed)
        self.args, self.step, self.seconds = args, 0, 0.0
        self.dtype = faster_type("cpu")
        self.model = LlamaForCausalLM.from_pretrained(args.model, dtype=torch.float32)
        self.mix = replace_linears(self.model, self.dtype)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=args.lr, betas=(0.9, 0.98), weight_decay=0.0, fused=True)
        self.student, self.loss = Head(self.model), distillation_loss
        self.teacher = None
        if args.distil:
            self.teacher = Head(LlamaForCausalLM.from_pretrained(args.model, dtype=self.dtype).requires_grad_(False))
        if args.compile:
            self.student, self.loss = torch.compile(self.student), torch.compile(self.loss)
            self.teacher = torch.compile(self.teacher) if self.teacher is not None else None

    def autocast(self, dtype: torch.dtype) -> torch.autocast:
        """Attention and head in `dtype`; BitLinear layers have their own."""
        return torch.autocast("cpu", torch.bfloat16, enabled=dtype is torch.bfloat16)

    def schedule(self, progress: float) -> None:
        """lambda and the learning rate at `progress` in [0, 1] of the run."""
        self.mix.fill_(mix_at(progress, self.args.mix_warm_up))
        for group in self.optimizer.param_groups:
            group["lr"] = self.args.lr * min(1.0, (progress + 1e-3) / 0.03) * (1 - progress)

    def update(self, batch: Tensor) -> float:
        """One optimizer step on (sequences, length + 1) ids; returns the mean loss in nats."""
        total = 0.0
        for part in batch.split(self.args.micro_batch):
            ids, targets = part[:, :-1].contiguous(), part[:, 1:].flatten()
            with self.autocast(self.dtype):
                with torch.no_grad():
                    goal = self.teacher(ids) if self.teacher is not None else None
                logits = self.student(ids)
            loss = self.loss(logits, goal, targets, self.args.distil, self.args.temperature) * len(part) / len(batch)
            loss.backward()
            total += loss.item()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.step += 1
        return total

    @torch.no_grad()
    def perplexity(self, windows: Tensor, dtype: torch.dtype | None = None) -> Perplexity:
        """Of the student as it is, with the present lambda; `dtype` is the matmuls' (default: the training's)."""
        dtype = dtype or self.dtype
        set_dtype(self.model, dtype)
        nats = []
        for part in windows.split(8):
            with self.autocast(dtype):
                logits = Head(self.model)(part[:, :-1])  # not compiled: without gradients it would be compiled once more
            losses = F.cross_entropy(logits.float(), part[:, 1:].flatten(), reduction="none")
            nats.append(losses.view(len(part), -1).mean(1))
        set_dtype(self.model, self.dtype)
        means = torch.cat(nats).double()
        error = means.std() / len(means) ** 0.5 if len(means) > 1 else torch.tensor(math.nan)
        return Perplexity(means.mean().item(), error.item(), windows[:, 1:].numel())

    def save(self, path: Path) -> None:
        tensors = dict(self.model.named_parameters())
        for name, p in self.model.named_parameters():
            tensors |= {f"optimizer.{key}.{name}": value for key, value in self.optimizer.state.get(p, {}).items()}
        part = path.with_suffix(".part")
        position = {"step": str(self.step), "seconds": str(self.seconds)}
        save_file({k: v.detach().contiguous() for k, v in tensors.items()}, part, position)
        part.replace(path)

    def load(self, path: Path) -> None:
        with safe_open(path, "pt") as file:
            self.step, self.seconds = int(file.metadata()["step"]), float(file.metadata()["seconds"])
            stored = set(file.keys())
            for name, p in self.model.named_parameters():
                p.data.copy_(file.get_tensor(name))
                keys = [k for k in ("step", "exp_avg", "exp_avg_sq") if f"optimizer.{k}.{name}" in stored]
                if keys:
                    self.optimizer.state[p] = {k: file.get_tensor(f"optimizer.{k}.{name}") for k in keys}


class Log:
    """One JSON line an evaluation, on stdout and in log.jsonl."""

    def __init__(self, path: Path):
        self.path = path

    def write(self, what: str, run: Tuning, found: Perplexity) -> None:
        tokens = run.step * run.args.batch * run.args.length
        row = {"what": what, "step": run.step, "tokens": tokens, "lambda": run.mix.item(), **found.row(), "seconds": run.seconds}
        print(json.dumps(row), flush=True)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")


def batch_of(ids: Tensor, args: argparse.Namespace, step: int) -> Tensor:
    """(batch, length + 1) ids. Positions depend on seed and step only: a resumed run sees the batches that it would have seen."""
    places = np.random.default_rng([args.seed, step]).integers(0, len(ids) - args.length, args.batch)
    return torch.stack([ids[i : i + args.length + 1] for i in places.tolist()])


def train(run: Tuning, ids: Tensor, windows: Tensor, log: Log) -> None:
    """Run the schedule to its end, by steps or by the clock, with evaluations and checkpoints on the way."""
    args, saved, clock = run.args, time.monotonic(), time.monotonic() - run.seconds
    while True:
        run.seconds = time.monotonic() - clock
        progress = max(run.step / args.steps, run.seconds / 60 / args.minutes)
        if progress >= 1 or time.monotonic() - saved > args.save_minutes * 60:
            run.save(args.out / "checkpoint.safetensors")
            saved = time.monotonic()
        if progress >= 1:
            return
        run.schedule(progress)
        if run.step and run.step % args.evaluate_every == 0:
            log.write("training", run, run.perplexity(windows[::4]))
        loss = run.update(batch_of(ids, args, run.step))
        if run.step % 10 == 0:
            print(f"step {run.step} lambda {run.mix.item():.3f} loss {loss:.4f} {run.seconds:.0f} s", flush=True)


def main(given: list[str] | None = None) -> None:
    args = arguments(given)
    if args.threads:
        torch.set_num_threads(args.threads)
    if not ((args.train and args.heldout) or (args.corpus / "train.txt").exists()):
        corpus.write(args.corpus / "packages", args.corpus)
    args.out.mkdir(parents=True, exist_ok=True)
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    ids = tokens_of(args.train or [args.corpus / "train.txt"], tokenizer)
    windows = spread_windows(tokens_of(args.heldout or [args.corpus / "heldout.txt"], tokenizer), args.length, args.windows)
    run, log = Tuning(args), Log(args.out / "log.jsonl")
    print(f"{sum(p.numel() for p in run.model.parameters()):,} parameters, {len(ids):,} training tokens, {run.dtype}", flush=True)
    if args.resume:
        run.load(args.out / "checkpoint.safetensors")
    else:
        for what, mix in (("before: float", 0.0), ("abrupt: ternary without training", 1.0)):
            run.mix.fill_(mix)
            log.write(what, run, run.perplexity(windows))
    train(run, ids, windows, log)
    run.mix.fill_(1.0)
    log.write("after: ternary", run, run.perplexity(windows))
    log.write("after: ternary, float32 matmuls", run, run.perplexity(windows, torch.float32))
    save_packed(run.model, args.model, args.out / "packed")


if __name__ == "__main__":
    main()
