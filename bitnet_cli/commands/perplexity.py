"""`bitnet perplexity`: how well a model predicts a text. The result goes to stdout, progress to stderr."""

import time
from pathlib import Path

from bitnet_cli.commands.opening import Options, open_model
from bitnet_cli.commands.prompts import read_prompt
from bitnet_cli.commands.reporting import Reporter, print_json, put
from bitnet_cli.errors import UsageError
from bitnet_cli.model.perplexity import score


def perplexity(
    model: str | None,
    *,
    file: Path | None,
    encoding: str | None = None,
    ctx_size: int,
    stride: int,
    special: bool,
    threads: int,
    cache_type: str,
    activations: str,
    query_type: str,
    mapped: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Print the perplexity of a text (see options/ for the options)."""
    if ctx_size < 0 or stride < 0 or threads < 0:
        raise UsageError("-c, --stride and -t must be 0 or more")
    text = read_prompt(None, file, encoding)
    if not text:
        raise UsageError("no text: give a file by -f, or a pipe")
    opened = open_model(model, Options(ctx_size, threads, cache_type, activations=activations, query_type=query_type, mapped=mapped), quiet)
    start = time.perf_counter()
    try:
        ids = opened.tokenizer.encode(text, special=special)
        context = opened.engine.context
        with Reporter(quiet).counting("scoring", "tokens") as progress:
            result = score(opened.scheduler, ids, context, stride or context, progress, opened.engine.silent)
    finally:
        opened.scheduler.close()
    seconds = time.perf_counter() - start
    if as_json:
        numbers = {"perplexity": result.perplexity, "perplexity_error": result.error, "nats": result.nats, "tokens": result.tokens}
        used = {"activations": opened.engine.scheme, "context": context, "stride": stride or context, "seconds": round(seconds, 3)}
        print_json(numbers | used)
    else:
        put(f"perplexity {result.perplexity:.4f} ± {result.error:.4f} ({result.nats:.4f} nats a token, {result.tokens} tokens)")
