"""What prompt lookup gains and costs: `python scripts/measure_lookup.py MODEL... [--threads 2] [--tokens 96]`.

For every model, one table on stdout: milliseconds of a step of 1, 2, 4, 8, 9 and 16 tokens with the logits of each (top 40, as the default
sampler asks for), and how many drafted tokens must be right for that step to gain over single ones. With --text FILE, also tokens/s with
and without lookup, in turn, for a greedy text after FILE's content, and for one after its first 200 characters.
"""

import argparse
import statistics
import time
from pathlib import Path

from bitnet_cli.gguf_file.reader import open_gguf
from bitnet_cli.model.engine import Engine, Row
from bitnet_cli.model.generate import TextPlan, Timings, generate
from bitnet_cli.model.names import find
from bitnet_cli.model.opening import OpenModel, Options, open_model, prompt_ids
from bitnet_cli.model.sampler import Sampler
from bitnet_cli.model.sampling import Sampling
from bitnet_cli.model.sequence import Sequence

SIZES, TOP, DEPTH = (1, 2, 4, 8, 9, 16), 40, 256


def steps(path: Path, threads: int, rounds: int) -> dict[int, float]:
    """Seconds of a step of so many tokens at position DEPTH: median over rounds in turn. The model needs no tokenizer."""
    with open_gguf(path) as file:
        text = Sequence(Engine(file, context=1024, threads=threads, cache_type="f16"))
    text.engine.start()
    seconds: dict[int, list[float]] = {size: [] for size in SIZES}
    ids = [(7 * i) % 1000 for i in range(DEPTH + max(SIZES))]
    text.feed(ids[:DEPTH])
    for token in range(12):  # columns and base-3 rows are decided after a few tokens
        text.feed([token], TOP)
    for _ in range(rounds):
        for size in SIZES:
            text.rewind(DEPTH)
            start = time.perf_counter()
            text.engine.step([Row(text, ids[DEPTH : DEPTH + size], range(size), TOP)])
            seconds[size].append(time.perf_counter() - start)
    text.engine.close()
    return {size: statistics.median(values) for size, values in seconds.items()}


def texts(opened: OpenModel, text: str, tokens: int, sampling: Sampling, rounds: int, draft: int) -> str:
    """Tokens/s without and with lookup, and how many guesses were right."""
    rates: dict[int, list[float]] = {0: [], draft: []}
    ids, t = prompt_ids(opened.tokenizer, text), Timings()
    for _ in range(rounds):
        for size in rates:
            opened.engine.pages.forget()
            t = Timings()
            for _token in generate(opened.scheduler, ids, Sampler(sampling), TextPlan(tokens, draft=size), t):
                pass
            rates[size].append(t.decode_rate)
    without, with_lookup = (statistics.median(rates[size]) for size in rates)
    ratio = with_lookup / without
    return f"{without:8.1f} {with_lookup:8.1f} tokens/s, {ratio:.2f}x, {t.accepted_tokens} of {t.drafted_tokens} guesses right"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=96)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--draft", type=int, default=8)
    parser.add_argument("--text", type=Path)
    options = parser.parse_args()
    for name in options.models:
        if not options.text:
            seconds = steps(find(name), options.threads, options.rounds)
            for size, value in seconds.items():
                print(f"{name}: {size:3} tokens a step {1e3 * value:8.2f} ms, as long as {value / seconds[1]:.2f} single ones")
            continue
        opened = open_model(find(name), Options(threads=options.threads))
        opened.engine.start()
        content = options.text.read_text(encoding="utf-8")
        for what, text in (("after all of it", content), ("after its beginning", content[:200])):
            for sampling in (Sampling(temperature=0.0), Sampling(seed=1)):
                result = texts(opened, text, options.tokens, sampling, options.rounds, options.draft)
                print(f"{name} {what}, temperature {sampling.temperature}: {result}")
        opened.scheduler.close()


if __name__ == "__main__":
    main()
