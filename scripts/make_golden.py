"""Expected output of an embedded model, computed by the training code: one entry of tests/golden/embedded.json.

    python scripts/make_golden.py build/tiny --name tiny

In: a folder written by scripts/train.py (checkpoint and tokenizer). Out: the perplexity of tests/golden/excerpt.txt and the greedy
continuations of a few prompts, by the PyTorch forward pass in float32; `orders`, perplexities by other orders of sums (the instruction
sets, the NumPy twins: docs/log.md), begin with it and are added by hand. --text FILE cuts a new excerpt out of that held-out text; then
every entry must be made again. For each continuation the smallest lead of the chosen token over the runner-up (in logits) is kept: a
correct engine may differ by one rounding (docs/log.md), worth about 0.02, so continuations with a lead under 0.1 are cut before that
token.
"""

import argparse
import json
import math
from pathlib import Path

import torch
import torch.nn.functional as F
from bitnet_torch import BitNet
from trained import load

PROMPTS = ("The people of the United States", "In the beginning", "Call me Ishmael.", "ROMEO:\n", "My fellow citizens,")
EXCERPT = 12_000  # characters
LEAD = 0.1


@torch.no_grad()
def greedy(model: BitNet, ids: list[int], count: int) -> tuple[list[int], list[float]]:
    """`count` likeliest continuations one after the other, and the lead of each."""
    new, leads = [], []
    for _ in range(count):
        top = model(torch.tensor([ids + new]))[0, -1].topk(2)
        new.append(int(top.indices[0]))
        leads.append(float(top.values[0] - top.values[1]))
    return new, leads


@torch.no_grad()
def nats(model: BitNet, ids: list[int]) -> float:
    """Mean negative log-likelihood over windows of the context that share nothing; every token but the first is scored."""
    length, total = model.shape.context, 0.0
    for start in range(0, len(ids) - 1, length):
        window = ids[start : start + length + 1]
        logits = model(torch.tensor([window[:-1]]))
        total += F.cross_entropy(logits[0].double(), torch.tensor(window[1:]), reduction="sum").item()
    return total / (len(ids) - 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--name", required=True, help="of the model in bitnet_cli/embedded/__init__.py")
    parser.add_argument("--text", type=Path, help="held-out text to cut a new excerpt from")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent.parent / "tests" / "golden")
    args = parser.parse_args()
    torch.set_num_threads(1)  # so small a model gains nothing from more
    model, tokenizer = load(args.run)
    bos = tokenizer.token_to_id("<|endoftext|>")
    if args.text:
        text = args.text.read_text(encoding="utf-8")
        middle = len(text) // 2
        excerpt = text[middle : middle + EXCERPT].replace("<|endoftext|>", "")
        (args.out / "excerpt.txt").write_text(excerpt, encoding="utf-8")
    excerpt = (args.out / "excerpt.txt").read_text(encoding="utf-8")
    ids = [bos, *tokenizer.encode(excerpt).ids]
    mean = nats(model, ids)
    continuations = {}
    for prompt in PROMPTS:
        new, leads = greedy(model, [bos, *tokenizer.encode(prompt).ids], 40)
        kept = next((i for i, lead in enumerate(leads) if lead < LEAD), len(leads))
        print(f"{prompt!r}: {kept} tokens: {tokenizer.decode(new[:kept])!r} | {tokenizer.decode(new)!r}")
        continuations[prompt] = new[:kept]
    file = args.out / "embedded.json"
    golden = json.loads(file.read_text()) if file.exists() else {}
    golden[args.name] = {
        "perplexity": math.exp(mean),
        "orders": [math.exp(mean)],
        "nats": mean,
        "tokens": len(ids) - 1,
        "greedy": continuations,
    }
    file.write_text(json.dumps(golden, indent=1) + "\n")
    print(f"perplexity {math.exp(mean):.4f} over {len(ids) - 1} tokens")


if __name__ == "__main__":
    main()
