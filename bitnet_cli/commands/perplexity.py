"""`bitnet perplexity`: how well a model predicts a text. The result goes to stdout, progress to stderr."""

import time
from pathlib import Path

from bitnet_cli.commands.loading import Options, open_model
from bitnet_cli.commands.prompts import read_prompt
from bitnet_cli.commands.reporting import Reporter, print_json, put
from bitnet_cli.errors import UsageError
from bitnet_cli.model.given import number
from bitnet_cli.model.perplexity import score, score_like_llama_cpp

LLAMA_CPP_CONTEXT = 512  # what llama-perplexity takes without -c


def perplexity(
    model: str | None,
    options: Options,
    *,
    file: Path | None,
    encoding: str | None = None,
    stride: int,
    special: bool,
    like: str | None = None,
    as_json: bool,
    quiet: bool,
) -> None:
    """Print the perplexity of a text (see options/ for the options)."""
    if like is not None and (stride or special):
        raise UsageError("--like llama.cpp has windows of its own; leave out --stride and --special")
    number("stride", stride, 0, whole=True)
    text = read_prompt(None, file, encoding)
    if not text:
        raise UsageError("no text: give a file by -f, or a pipe")
    opened = open_model(model, options, quiet)
    start = time.perf_counter()
    try:
        ids = opened.tokenizer.encode(text, special=special)
        context = opened.engine.context if like is None or options.context else min(opened.engine.context, LLAMA_CPP_CONTEXT)
        with Reporter(quiet).counting("scoring", "tokens" if like is None else "windows") as progress:
            if like is None:
                result = score(opened.scheduler, ids, context, stride or context, progress, opened.engine.silent)
            else:
                bos = opened.tokenizer.bos_id if opened.tokenizer.encode("", bos=None) else None
                result = score_like_llama_cpp(opened.scheduler, ids, context, bos, progress)
    finally:
        opened.scheduler.close()
    seconds = time.perf_counter() - start
    if as_json:
        numbers = {"perplexity": result.perplexity, "perplexity_error": result.error, "nats": result.nats, "tokens": result.tokens}
        used: dict[str, object] = {"like": like} if like is not None else {"stride": stride or context}
        used |= {"activations": opened.engine.scheme, "context": context, "seconds": round(seconds, 3)}
        print_json(numbers | used)
    else:
        counted = f"{result.nats:.4f} nats a token, {result.tokens} tokens"
        if result.tokens > 1:
            put(f"perplexity {result.perplexity:.4f} ± {result.error:.4f} ({counted}, taken as independent)")
        else:
            put(f"perplexity {result.perplexity:.4f} ({counted.removesuffix('s')}: of one there is no error)")
