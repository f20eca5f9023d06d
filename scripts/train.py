"""Train a small BitNet language model and save it as a Hugging Face folder: from scratch, or a second stage with other activations.

    python scripts/train.py --out build/tiny                 # ternary weights, int8 activations: BitNet b1.58
    python scripts/train.py --out build/tiny-float --float   # the same shape and data in float
    python scripts/train.py --out build/tiny-a4.8 --from build/tiny/checkpoint.safetensors --activations a4.8 --steps 400 --lr 1e-3

Reads text from `scripts/corpus.py`, trains a byte-level BPE tokenizer on it, and writes under --out:
`hf/` (packed `bitnet` flavour: config.json, model.safetensors, tokenizer files), `checkpoint.safetensors` (float masters and optimizer
state, --resume continues from it) and `log.jsonl` (one line an evaluation: step, tokens, loss in nats, perplexity, seconds).

Recipe: arXiv 2402.17764, Training Tips: Adam (0.9, 0.95), learning rate falling linearly with an abrupt drop half-way, weight decay 0.1
and then 0. A GPU is used where there is one; on CPU, matmuls run in bfloat16 where that is the faster type.

--from starts a second stage, as BitNet a4.8 (arXiv 2411.04965) and BitNet v2 (2504.18415) train: weights and optimizer state are the
first stage's, batches are those that would have come next, weight decay stays 0 as in the second half of the recipe. The papers cut the
last 5 % of one learning-rate schedule off for it; here the first stage's rate has already fallen to 0, so it rises again to --lr, over a
short warm-up, and falls linearly to 0.
"""

import argparse
import json
import math
import time
from pathlib import Path

import corpus
import numpy as np
import torch
import torch.nn.functional as F
from activation_schemes import SCHEMES
from bitnet_torch import BitNet, Shape
from hf_folder import save_folder, train_tokenizer
from safetensors import safe_open
from safetensors.torch import save_file
from tokenizers import Tokenizer


def arguments(given: list[str] | None = None) -> argparse.Namespace:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--out", type=Path, required=True)
    p.add_argument("--corpus", type=Path, default=Path("build/corpus"), help="folder of train.txt and heldout.txt; made when absent")
    p.add_argument("--float", action="store_true", help="train the float twin instead")
    p.add_argument("--activations", choices=SCHEMES, default="int8", help="quantisation of the projections' inputs")
    p.add_argument("--from", dest="stage_1", type=Path, metavar="CHECKPOINT", help="second stage: go on from this checkpoint.safetensors")
    p.add_argument("--steps", type=int, default=2400, help="of this stage")
    p.add_argument("--batch", type=int, default=16, help="sequences a step")
    p.add_argument("--micro-batch", type=int, default=4, help="sequences a forward pass")
    p.add_argument("--lr", type=float, nargs="+", default=(3e-3, 2e-3), help="of the first and second half (the last: of a second stage)")
    p.add_argument("--warm-up", type=int, default=100, metavar="STEPS")
    p.add_argument("--minutes", type=float, default=math.inf, help="finish the schedule by then even if slower than planned")
    p.add_argument("--evaluate-every", type=int, default=200, metavar="STEPS")
    p.add_argument("--threads", type=int, default=0)
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--resume", action="store_true", help="go on from checkpoint.safetensors")
    p.add_argument("--compile", action="store_true", help="torch.compile model and loss (needs a C++ compiler; 2x)")
    for name, default in vars(Shape()).items():
        if isinstance(default, int):
            p.add_argument(f"--{name.replace('_', '-')}", type=int, default=default)
    p.add_argument("--hidden-act", choices=("relu2", "silu"), default="relu2", help="with --group: silu, as `bitnet` has it")
    return p.parse_args(given)


def tokens_of(folder: Path, tokenizer: Tokenizer, part: str) -> torch.Tensor:
    """Ids of one text part, documents joined by the end-of-text token; cached beside the text."""
    cache = folder / f"{part}.{tokenizer.get_vocab_size()}.npy"
    if not cache.exists():
        documents = (folder / f"{part}.txt").read_text(encoding="utf-8").split(corpus.SEPARATOR)
        end = tokenizer.token_to_id(corpus.SEPARATOR)
        ids = [i for e in tokenizer.encode_batch(documents, add_special_tokens=False) for i in (end, *e.ids)]
        np.save(cache, np.array(ids, np.uint16))
    return torch.from_numpy(np.load(cache).astype(np.int64))


def faster_type(device: str) -> torch.dtype:
    """bfloat16 or float32, whichever multiplies faster here."""
    seconds = {}
    for dtype in (torch.float32, torch.bfloat16):
        a = torch.randn(1024, 512, dtype=dtype, device=device)
        for repeat in range(20):
            if repeat == 5:
                start = time.perf_counter()
            a @ a.T
        seconds[dtype] = time.perf_counter() - start
    return min(seconds, key=seconds.__getitem__)


@torch.no_grad()
def held_out_loss(model: BitNet, ids: torch.Tensor, batch: int = 4) -> float:
    """Mean negative log-likelihood in nats of `ids`, in float32, over windows of the model's context that do not overlap."""
    length = model.shape.context
    windows = ids[: (len(ids) - 1) // length * length].view(-1, length)
    targets = ids[1 : windows.numel() + 1].view(-1, length)
    total = 0.0
    for i in range(0, len(windows), batch):
        logits = model(windows[i : i + batch])
        total += F.cross_entropy(logits.flatten(0, 1), targets[i : i + batch].flatten(), reduction="sum").item()
    return total / windows.numel()


def mean_nats(model: BitNet, ids: torch.Tensor, targets: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Mean negative log-likelihood of `targets` (tokens,) after `ids` (sequences, length)."""
    return F.cross_entropy(model(ids, dtype).flatten(0, 1), targets)


class Training:
    """Model, optimizer and position of one run. `step` counts on through a second stage, which begins at step `first`."""

    def __init__(self, args: argparse.Namespace, device: str):
        shape = Shape(**{name: getattr(args, name) for name, value in vars(Shape()).items() if isinstance(value, int | str)})
        torch.manual_seed(args.seed)
        self.args, self.step, self.first = args, 0, 0
        self.model = BitNet(shape, None if args.float else args.activations).to(device)
        matrices = [p for n, p in self.model.named_parameters() if n.endswith("proj.weight")]
        others = [p for n, p in self.model.named_parameters() if not n.endswith("proj.weight")]
        groups = [{"params": matrices, "decay": True}, {"params": others, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=args.lr[0], betas=(0.9, 0.95))
        self.nats = torch.compile(mean_nats) if args.compile else mean_nats
        self.dtype = faster_type(device)

    def schedule(self, progress: float) -> None:
        """Learning rate and weight decay at `progress` in [0, 1] of the run."""
        second = progress >= 0.5 or self.first > 0
        warm = min(1.0, (self.step - self.first + 1) / self.args.warm_up)
        for group in self.optimizer.param_groups:
            group["lr"] = self.args.lr[-1 if second else 0] * (1 - progress) * warm
            if "decay" in group:
                group["weight_decay"] = 0.0 if second else 0.1

    def update(self, batch: torch.Tensor) -> float:
        """One optimizer step on (sequences, context + 1) ids; returns the mean loss in nats."""
        loss_sum = 0.0
        for part in batch.split(self.args.micro_batch):
            loss = self.nats(self.model, part[:, :-1].contiguous(), part[:, 1:].flatten(), self.dtype) * len(part) / len(batch)
            loss.backward()
            loss_sum += loss.item()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.step += 1
        return loss_sum

    def save(self, path: Path) -> None:
        tensors = dict(self.model.state_dict())
        for name, p in self.model.named_parameters():
            for key, value in self.optimizer.state.get(p, {}).items():
                tensors[f"optimizer.{key}.{name}"] = value
        part = path.with_suffix(".part")
        metadata = {"step": str(self.step), "first": str(self.first), "scheme": self.model.scheme or "float"}
        save_file({k: v.detach().contiguous() for k, v in tensors.items()}, part, metadata)
        part.replace(path)

    def load(self, path: Path) -> None:
        """Weights, optimizer state and position. SystemExit: the model of --resume has other activations."""
        with safe_open(path, "pt") as file:
            saved = file.metadata()
            self.step, self.first = int(saved["step"]), int(saved.get("first", 0))
            scheme = self.model.scheme or "float"
            if self.args.resume and saved.get("scheme", scheme) != scheme:
                raise SystemExit(f"{path} is a run with {saved['scheme']} activations, not {scheme}: start a second stage with --from")
            self.model.load_state_dict({k: file.get_tensor(k) for k in self.model.state_dict()})
            for name, p in self.model.named_parameters():
                keys = ("step", "exp_avg", "exp_avg_sq")
                self.optimizer.state[p] = {k: file.get_tensor(f"optimizer.{k}.{name}") for k in keys}


def begin(args: argparse.Namespace, device: str) -> Training:
    """A run at its first step: from scratch, after another stage, or where it was interrupted."""
    run = Training(args, device)
    if args.resume:
        run.load(args.out / "checkpoint.safetensors")
    elif args.stage_1:
        run.load(args.stage_1)
        run.first = run.step
    return run


def train(run: Training, ids: torch.Tensor, heldout: torch.Tensor) -> None:
    """The schedule to its end, with evaluations and checkpoints on the way."""
    args, length, start = run.args, run.model.shape.context, time.monotonic()
    while True:
        progress = max((run.step - run.first) / args.steps, (time.monotonic() - start) / 60 / args.minutes)
        if (run.step - run.first) % args.evaluate_every == 0 or progress >= 1:
            nats = held_out_loss(run.model, heldout if progress >= 1 else heldout[: 64 * length + 1])
            tokens = run.step * args.batch * length
            row = {"step": run.step, "tokens": tokens, "heldout_nats": nats, "perplexity": math.exp(nats)}
            row |= {"whole_heldout": progress >= 1, "seconds": time.monotonic() - start}
            print(json.dumps(row), flush=True)
            with (args.out / "log.jsonl").open("a") as log:
                log.write(json.dumps(row) + "\n")
            run.save(args.out / "checkpoint.safetensors")
        if progress >= 1:
            break
        run.schedule(progress)
        # Positions depend on seed and step only: a resumed run, the float twin, or other activations see the same batches.
        places = np.random.default_rng([args.seed, run.step]).integers(0, len(ids) - length - 1, args.batch)
        loss = run.update(torch.stack([ids[i : i + length + 1] for i in places.tolist()]))
        if run.step % 20 == 0:
            print(f"step {run.step} loss {loss:.4f} {time.monotonic() - start:.0f} s", flush=True)


def main(given: list[str] | None = None) -> None:
    args = arguments(given)
    if args.threads:
        torch.set_num_threads(args.threads)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if not (args.corpus / "train.txt").exists():
        corpus.write(args.corpus / "packages", args.corpus)
    args.out.mkdir(parents=True, exist_ok=True)
    tokenizer = train_tokenizer(args.corpus / "train.txt", args.vocab_size)
    ids, heldout = (tokens_of(args.corpus, tokenizer, part).to(device) for part in ("train", "heldout"))
    run = begin(args, device)
    print(f"{sum(p.numel() for p in run.model.parameters()):,} parameters, {len(ids):,} training tokens, {run.dtype}", flush=True)
    train(run, ids, heldout)
    save_folder(run.model, tokenizer, args.out / "hf")


if __name__ == "__main__":
    main()
