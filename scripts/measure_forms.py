"""What a token costs where the text must have a form: milliseconds a token, decode steps and all that comes between them.

    python scripts/measure_forms.py model.gguf --tokens 16

All texts are equally long and begin with the same prompt; runs in turn, medians.
"""

import argparse
import statistics
import time
from pathlib import Path
from typing import Any

from bitnet_cli.model.completion import Request, complete
from bitnet_cli.model.constraint import Constraint, json_grammar, regex_grammar
from bitnet_cli.model.opening import OpenModel, Options, open_model
from bitnet_cli.model.sampling import Sampling

TEXTS: dict[str, dict[str, Any]] = {
    "any text": {},
    "any text, all logits computed": {"logprobs": 0},
    "expression that allows everything": {"grammar": regex_grammar("(.|\n)*")},
    "one long string of JSON": {"grammar": json_grammar({"type": "string", "minLength": 100_000})},
    "list of integers": {"grammar": json_grammar({"type": "array", "items": {"type": "integer", "maximum": 99}, "minItems": 10_000})},
}


def milliseconds(model: OpenModel, sampling: Sampling, tokens: int, wanted: dict[str, Any]) -> float:
    """Of a token after the first."""
    completion = complete(model, model.tokenizer.encode("Once upon a time"), sampling, Request(tokens, ignore_eos=True, **wanted))
    start = time.perf_counter()
    for _ in completion:
        pass
    seconds = time.perf_counter() - start - completion.timings.prefill_seconds
    return 1e3 * seconds / max(completion.timings.new_tokens - 1, 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--tokens", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=0)
    args = parser.parse_args()
    model = open_model(args.model, Options(threads=args.threads))
    model.engine.start()
    start = time.perf_counter()
    Constraint(model.tokenizer, regex_grammar("a"))
    print(f"{model.tokenizer.vocab_size} tokens made ready in {time.perf_counter() - start:.2f} s")
    for sampling in (Sampling(seed=1), Sampling(0.0)):
        milliseconds(model, sampling, args.tokens, {})
        rounds = [[milliseconds(model, sampling, args.tokens, wanted) for wanted in TEXTS.values()] for _ in range(args.rounds)]
        for name, times in zip(TEXTS, zip(*rounds, strict=True), strict=True):
            print(f"{'greedy' if sampling.temperature == 0 else 'sampled'}, {name:34} {statistics.median(times):8.3f} ms")
    model.scheduler.close()


if __name__ == "__main__":
    main()
