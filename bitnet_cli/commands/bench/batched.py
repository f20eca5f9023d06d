"""Many texts at once (`-npl`): B prompts, then B texts that decode together, as llama-batched-bench does; with its names.

What is timed is all that a server does for a token: the step, sampling, looking for an end, and text from tokens. Texts whose prompts are
read write while others' are read: t_pp ends when each has its first token, and speed_tg is of the tokens after that.
"""

import json
import statistics
import time
from typing import Any, NamedTuple

from bitnet_cli.commands.bench.plan import BenchPlan, Setup
from bitnet_cli.errors import BitnetError, UsageError
from bitnet_cli.gguf_file.reader import GGUFFile
from bitnet_cli.model.engine import Engine
from bitnet_cli.model.generate import Text, TextPlan
from bitnet_cli.model.sampler import Sampler
from bitnet_cli.model.sampling import Sampling
from bitnet_cli.model.scheduler import Scheduler
from bitnet_cli.text.from_gguf import tokenizer_from_metadata
from bitnet_cli.text.stream import IncrementalDecoder
from bitnet_cli.text.tokenizer import Tokenizer

MOST = 128  # texts
WARM_UP = 12  # tokens, after which layouts for decode are built (derived.py)
COLUMNS = {"PP": "pp", "TG": "tg", "B": "pl", "N_KV": "n_kv", "T_PP s": "t_pp", "S_PP t/s": "speed_pp", "T_TG s": "t_tg"} | {
    "S_TG t/s": "speed_tg",
    "T s": "t",
    "S t/s": "speed",
}


class Batch(NamedTuple):
    """Tokens of each prompt, new tokens of each text, texts."""

    prompt: int
    gen: int
    texts: int


def batches(plan: BenchPlan, texts: list[int]) -> list[Batch]:
    """Every combination. UsageError: there are no prompts, or nothing to decode."""
    prompts, gens = (sorted({getattr(test, name) for test in plan.tests} - {0}) for name in ("n_prompt", "n_gen"))
    if not prompts or not gens:
        raise UsageError("-npl needs prompts (-p) and tokens to decode (-n)")
    return [Batch(prompt, gen, count) for prompt in prompts for gen in gens for count in texts]


def _tokenizer(file: GGUFFile, vocab: int) -> Tokenizer | None:
    try:
        return tokenizer_from_metadata(file.metadata, str(file.path), vocab)
    except BitnetError:
        return None


class Batcher:
    """Runs batches on one engine. ids: tokens that prompts are taken from."""

    def __init__(self, file: GGUFFile, setup: Setup, wanted: list[Batch], ids: list[int], top: int):
        longest, most = max(b.prompt + b.gen for b in wanted), max((b.prompt + b.gen) * b.texts for b in wanted)
        self.engine = Engine(
            file,
            context=longest,
            threads=setup.threads,
            cache_type=setup.cache_type,
            weight_bits=setup.weights,
            activations=setup.activations,
            cache_tokens=most + 128 * max(b.texts for b in wanted),  # a page more for each text
        )
        self._setup, self._ids, self._tokenizer = setup, ids, _tokenizer(file, self.engine.config.vocab)
        self._sampling = Sampling(0.8 if top != 1 else 0.0, top, seed=1)

    def warm_up(self) -> None:
        """Build what decode needs."""
        self._run(Batch(8, WARM_UP, 1))
        self.engine.derived.finish()

    def _run(self, batch: Batch) -> tuple[float, float, int]:
        """Seconds until each text has its first token; those after that, and the tokens that come in them."""
        self.engine.pages.forget()
        scheduler, begun, written = Scheduler(self.engine), 0, 0
        plan = TextPlan(batch.gen + 1, silent=self.engine.silent)  # the first new token is the prompt's
        jobs = []
        for number in range(batch.texts):
            prompt = [self._ids[(number * 7 + i) % len(self._ids)] for i in range(batch.prompt)]
            prompt[0] = number % self.engine.config.vocab  # no two begin alike
            jobs.append(Text(prompt, Sampler(self._sampling), plan))
        decoders = [IncrementalDecoder(self._tokenizer, at_start=False) for _ in jobs] if self._tokenizer else []
        start = first = time.perf_counter()
        with scheduler.alone():
            for job in jobs:
                scheduler.submit(job)
            while scheduler.step():
                for number, job in enumerate(jobs):
                    while job.ready:
                        token = job.ready.popleft()
                        if decoders:
                            decoders[number].push(token)
                if begun < batch.texts:
                    begun = sum(job.timings.new_tokens > 0 for job in jobs)
                    first, written = time.perf_counter(), sum(job.timings.new_tokens for job in jobs)
        end = time.perf_counter()
        for job in jobs:
            if job.error is not None:
                raise job.error
        return first - start, end - first, sum(job.timings.new_tokens for job in jobs) - written

    def row(self, batch: Batch, repeats: int) -> dict[str, Any]:
        """Medians, by the names of llama-batched-bench."""
        runs = [self._run(batch) for _ in range(repeats)]
        prompts, decoding, new = (statistics.median(numbers) for numbers in zip(*runs, strict=True))
        tokens = batch.texts * batch.prompt, batch.texts * batch.gen
        s, total = self._setup, prompts + decoding
        keys = {"n_threads": s.threads, "type_k": s.cache_type, "activations": self.engine.scheme, "pp": batch.prompt, "tg": batch.gen}
        times = {"pl": batch.texts, "n_kv": sum(tokens), "t_pp": prompts, "speed_pp": tokens[0] / prompts, "t_tg": decoding}
        return keys | times | {"speed_tg": new / decoding, "t": total, "speed": sum(tokens) / total}


def write(rows: list[dict[str, Any]], kind: str) -> str:
    """All rows as one text; kind: of output.FORMATS."""
    if kind == "json":
        return json.dumps(rows, indent=1) + "\n"
    if kind == "jsonl":
        return "".join(json.dumps(row) + "\n" for row in rows)
    if kind == "csv":
        lines = [",".join(rows[0]), *(",".join(str(value) for value in row.values()) for row in rows)] if rows else []
        return "".join(line + "\n" for line in lines)
    cells = [[f"{row[key]:.2f}" if isinstance(row[key], float) else str(row[key]) for key in COLUMNS.values()] for row in rows]
    widths = [max(map(len, column)) for column in zip(COLUMNS, *cells, strict=True)]
    lines = [" | ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in ([*COLUMNS], *cells)]
    lines.insert(1, "-|-".join("-" * width for width in widths))
    return "".join(f"| {line} |\n".replace("| -", "|-").replace("- |", "-|") if kind == "md" else line + "\n" for line in lines)
