"""`bitnet embed`: texts -> vectors.

They go to stdout (a JSON array a line, or one JSON object) or to an .npy file; notes, progress and timings go to stderr.
"""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from bitnet_kernels import isa
from numpy.typing import NDArray

from bitnet_cli.commands.compile_progress import compiling
from bitnet_cli.commands.loading import Options, find_model
from bitnet_cli.commands.prompts import read_prompt
from bitnet_cli.commands.reporting import Reporter, print_json, say
from bitnet_cli.errors import UnsupportedError, UsageError
from bitnet_cli.gguf_file.part_file import check_target, part_file
from bitnet_cli.gguf_file.reader import open_gguf
from bitnet_cli.machine.threads import physical_cores
from bitnet_cli.model.checks import DEFAULT_CONTEXT
from bitnet_cli.model.config import NO_POOLING, ModelConfig, read_config
from bitnet_cli.model.embedding import embed_ids, token_ids
from bitnet_cli.model.engine import Engine
from bitnet_cli.model.scheduler import Scheduler
from bitnet_cli.text.files import require_encoding
from bitnet_cli.text.from_gguf import tokenizer_from_metadata

# What queries begin with in the training of BitNet-embedding and its teachers (multilingual E5, Qwen3-Embedding); documents have nothing.
INSTRUCTION = "Instruct: {}\nQuery: "
NPY_HEADER = 128  # bytes


class Output(NamedTuple):
    """Where vectors go: to `path`, an .npy file, or to stdout as one JSON object or as lines. quiet: no notes on stderr."""

    path: Path | None = None
    as_json: bool = False
    force: bool = False
    quiet: bool = False


class Job(NamedTuple):
    """Token ids of the texts, what to do with them, and how many texts were cut."""

    texts: list[list[int]]
    pooling: str
    normalize: bool
    cut: int

    @property
    def tokens(self) -> int:
        return sum(map(len, self.texts))


def read_texts(given: Sequence[str], file: Path | None, encoding: str | None = None) -> list[str]:
    """Texts of the command line, or the lines of a file or of a pipe. encoding: as run.read_prompt."""
    require_encoding(encoding)
    if given and file is not None:
        raise UsageError("give texts as arguments or by -f, not both")
    if given:
        return list(given)
    text = read_prompt(None, file, encoding)
    if not text:
        raise UsageError("no text: give it as an argument, by -f FILE (one text a line), or through a pipe")
    return text.split("\n")


def prefix_of(prompt: str | None, instruction: str | None) -> str:
    """What is put before every text."""
    if prompt is not None and instruction is not None:
        raise UsageError("give --prompt or --instruction, not both")
    return INSTRUCTION.format(instruction) if instruction is not None else prompt or ""


def embed(
    texts: Sequence[str],
    model: str | None,
    options: Options,
    *,
    file: Path | None,
    encoding: str | None = None,
    prefix: str = "",
    pooling: str | None,
    normalize: bool,
    output: Output,
) -> None:
    """Write the embedding of each text; see options/ for the options. prefix: put before each. Of options, context and threads count."""
    if output.path is not None:
        if output.path.suffix != ".npy":
            raise UsageError(f"{output.path}: expected a name that ends in .npy")
        check_target(output.path, output.force)
    given = read_texts(texts, file, encoding)
    report, start = Reporter(output.quiet), time.perf_counter()
    try:
        isa.chosen()
        with open_gguf(find_model(model)) as gguf:
            config = read_config(gguf)
            limit = context_of(config, options.context)
            job = prepare(gguf.metadata, str(gguf.path), [prefix + text for text in given], config, pooling, normalize, limit)
            longest = max(map(len, job.texts))
            scheduler = Scheduler(Engine(gguf, context=longest, threads=options.threads or physical_cores(), weight_bits="2"))
    except isa.InstructionSetError as error:
        raise UnsupportedError(str(error)) from None
    if job.cut:
        report.warn(f"{job.cut} of {len(given)} texts have more than {limit} tokens and were cut; -c up to {config.context} takes more")
    with compiling(output.quiet):
        scheduler.engine.start()
    loaded = time.perf_counter()
    try:
        vectors = run(scheduler, job, report)
    finally:
        scheduler.close()
    seconds = time.perf_counter() - loaded
    write(vectors, job, config, output)
    if not output.quiet:
        how = f"pooling {job.pooling}, {'normalized' if job.normalize else 'not normalized'}"
        speed = f"{job.tokens} tokens in {seconds:.2f} s, {job.tokens / max(seconds, 1e-9):.0f} tokens/s"
        count = f"{len(given)} text" + "s" * (len(given) != 1)
        say(f"bitnet: {count}, {speed}; load {loaded - start:.2f} s; {how}")


def context_of(config: ModelConfig, wanted: int) -> int:
    """Most tokens of a text."""
    if wanted > config.context:
        raise UsageError(f"context {wanted}: this model was trained for 1 to {config.context} tokens")
    return wanted or min(DEFAULT_CONTEXT, config.context)


def prepare(
    metadata: dict[str, Any], source: str, texts: Sequence[str], config: ModelConfig, pooling: str | None, normalize: bool, limit: int
) -> Job:
    """Tokens of all texts, before anything is computed: what is wrong with one of many is said at once."""
    pooling = pooling or config.pooling
    if pooling is None:
        raise UsageError(f"{source}: {NO_POOLING}")
    tokenizer = tokenizer_from_metadata(metadata, source, config.vocab)
    ids, cut = [], 0
    for number, text in enumerate(texts, 1):
        try:
            tokens, over = token_ids(tokenizer, text, limit)
        except UsageError as error:
            raise UsageError(f"text {number} of {len(texts)}: {error}") from None
        ids.append(tokens)
        cut += over > 0
    return Job(ids, pooling, normalize, cut)


def run(scheduler: Scheduler, job: Job, report: Reporter) -> list[NDArray[np.float32]]:
    """(rows, hidden) float32 of each text: one row, or one a token without pooling."""
    with report.counting("embedding", "texts") as progress:
        return embed_ids(scheduler, job.texts, job.pooling, job.normalize, progress)


def write(vectors: list[NDArray[np.float32]], job: Job, config: ModelConfig, output: Output) -> None:
    """All vectors to where they are wanted. Without pooling a text is a list of vectors; an .npy file has those of all texts in a row."""
    if output.path is not None:
        table = np.concatenate(vectors)
        with part_file(output.path, table.nbytes + NPY_HEADER) as part, part.open("wb") as stream:
            np.save(stream, table)
    lists = [_numbers(v) if job.pooling == "none" else _numbers(v)[0] for v in vectors] if output.path is None else None
    if output.as_json:
        facts = {"model": config.name, "dimensions": config.hidden, "pooling": job.pooling, "normalized": job.normalize}
        counts = {"texts": len(vectors), "tokens": [len(ids) for ids in job.texts], "cut": job.cut}
        print_json(facts | counts | ({"output": str(output.path)} if lists is None else {"embeddings": lists}))
    elif lists is not None:
        for row in lists:
            print_json(row)


def _numbers(vectors: NDArray[np.float32]) -> list[list[float]]:
    """With nine digits, which give back a float32 to the bit."""
    return [[float(f"{x:.9g}") for x in row] for row in vectors.tolist()]
