"""Held-out perplexity and activation sparsity of models that scripts/train.py wrote, by the training code's forward pass.

    python scripts/evaluate.py build/tiny build/tiny-a4.8 build/tiny-float --text build/corpus/heldout.txt

In: folders with checkpoint and tokenizer, and a text. Out: two Markdown tables (--json: the same numbers, one line a model).

Perplexity is over windows of the model's context that share nothing; its standard error takes tokens as independent. The difference to
the first model is in nats a token, with the standard error of the paired differences: the tokens are the same.

Zeros are per cent of the codes that a projection's input has after its quantiser (and top-k), as in table 2 of BitNet a4.8
(arXiv 2411.04965). A row of `up` whose gate is not positive need not be read either, so its column is 1 - (1 - zeros of its input) *
(1 - zeros of the gate), per token, as the paper has it; `gate <= 0` is the gate's share alone. `read` is the share of all ternary weights
that meet no zero: the paper's activated parameters, without the embedding. `rows, columns` is the share that is left when only whole
rows of `up` and whole columns of `down` are passed over, as the engine does.
"""

import argparse
import json
import math
from pathlib import Path

import corpus
import torch
import torch.nn.functional as F
from activation_schemes import Codes, Input
from bitnet_torch import BitNet
from tokenizers import Tokenizer
from torch import Tensor
from trained import load

INPUTS = ("qkv", "o", "gate_up", "down")


class Counting:
    """An Input that also keeps what share of a token's codes is zero, and of its values before the transform: (tokens,) each."""

    def __init__(self, treatment: Input):
        self.treatment, self.zero_values, self.zero_codes = treatment, [], []

    def transform(self, x: Tensor) -> Tensor:
        self.zero_values.append((x == 0).float().mean(-1).flatten())
        return self.treatment.transform(x)

    def codes(self, x: Tensor) -> Codes:
        codes, factor = self.treatment.codes(x)
        self.zero_codes.append((codes == 0).float().mean(-1).flatten())
        return codes, factor


def counted(model: BitNet) -> list[dict[str, Counting]]:
    """Put a counter on every input of every block."""
    counters = []
    for block in model.layers:
        own = [Counting(treatment) for treatment in (*block.self_attn.inputs, *block.mlp.inputs)]
        block.self_attn.inputs, block.mlp.inputs = tuple(own[:2]), tuple(own[2:])
        counters.append(dict(zip(INPUTS, own, strict=True)))
    return counters


@torch.no_grad()
def token_nats(model: BitNet, ids: Tensor, batch: int = 4) -> Tensor:
    """Negative log-likelihood (tokens,) float64 of every token but the first and those after the last whole window."""
    length = model.shape.context
    windows = ids[: (len(ids) - 1) // length * length].view(-1, length)
    targets = ids[1 : windows.numel() + 1].view(-1, length)
    parts = []
    for i in range(0, len(windows), batch):
        logits = model(windows[i : i + batch]).flatten(0, 1)
        parts.append(F.cross_entropy(logits, targets[i : i + batch].flatten(), reduction="none").double())
    return torch.cat(parts)


def sparsity(model: BitNet, counters: list[dict[str, Counting]]) -> dict[str, float]:
    """Shares in [0, 1], means over tokens and layers; the keys are the table's columns."""
    zeros = {name: torch.stack([torch.cat(layer[name].zero_codes) for layer in counters]) for name in INPUTS}
    closed = torch.stack([torch.cat(layer["down"].zero_values) for layer in counters])
    up = 1 - (1 - zeros["gate_up"]) * (1 - closed)
    s = model.shape
    kv = 2 * s.kv_heads * s.head_dim
    weights = {"qkv": s.hidden * (s.hidden + kv), "o": s.hidden**2, "gate": s.hidden * s.feed_forward}
    weights |= {"up": weights["gate"], "down": weights["gate"]}
    of = {"qkv": zeros["qkv"], "o": zeros["o"], "gate": zeros["gate_up"], "up": up, "down": zeros["down"]}
    total = sum(weights.values())
    share = {name: float(value.mean()) for name, value in of.items()}
    whole = {"up": float(closed.mean()), "down": share["down"]}
    return share | {
        "gate <= 0": float(closed.mean()),
        "read": 1 - sum(share[name] * weights[name] for name in weights) / total,
        "rows, columns": 1 - sum(value * weights[name] for name, value in whole.items()) / total,
    }


def ids_of(text: Path, tokenizer: Tokenizer) -> Tensor:
    """Documents of a text, each after the end-of-text token, as scripts/train.py reads them."""
    end = tokenizer.token_to_id(corpus.SEPARATOR)
    encoded = tokenizer.encode_batch(text.read_text(encoding="utf-8").split(corpus.SEPARATOR), add_special_tokens=False)
    return torch.tensor([i for document in encoded for i in (end, *document.ids)])


def evaluate(folder: Path, text: Path, windows: int) -> tuple[dict[str, object], Tensor]:
    """One row of numbers, and the nats of every token."""
    model, tokenizer = load(folder)
    counters = counted(model) if model.scheme else []
    ids = ids_of(text, tokenizer)
    nats = token_nats(model, ids[: windows * model.shape.context + 1] if windows else ids)
    error = float(nats.std() / len(nats) ** 0.5)
    perplexity = math.exp(float(nats.mean()))
    row = {"model": folder.name, "scheme": model.scheme or "float", "tokens": len(nats), "perplexity": perplexity}
    row |= {"perplexity_error": perplexity * error, "nats": float(nats.mean()), "nats_error": error}
    return row | {"sparsity": sparsity(model, counters) if counters else {}}, nats


def tables(rows: list[dict[str, object]]) -> str:
    lines = ["| model | activations | perplexity | nats more than the first |", "|---|---|---|---|"]
    for row in rows:
        more = f"{row['difference']:+.4f} ± {row['difference_error']:.4f}" if "difference" in row else ""
        lines.append(f"| {row['model']} | {row['scheme']} | {row['perplexity']:.3f} ± {row['perplexity_error']:.3f} | {more} |")
    columns = next((list(row["sparsity"]) for row in rows if row["sparsity"]), [])
    lines += ["", "| model | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    for row in rows:
        if row["sparsity"]:
            lines.append(f"| {row['model']} | " + " | ".join(f"{100 * row['sparsity'][c]:.1f}" for c in columns) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--text", type=Path, default=Path("build/corpus/heldout.txt"))
    parser.add_argument("--windows", type=int, default=0, help="only the first so many; 0: all")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    rows, first = [], None
    for folder in args.runs:
        row, nats = evaluate(folder, args.text, args.windows)
        if first is None:
            first = nats
        else:
            more = nats - first
            row |= {"difference": float(more.mean()), "difference_error": float(more.std() / len(more) ** 0.5)}
        rows.append(row)
        if args.json:
            print(json.dumps(row), flush=True)
    if not args.json:
        print(tables(rows))


if __name__ == "__main__":
    main()
