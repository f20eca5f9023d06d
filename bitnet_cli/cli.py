"""The command `bitnet`: options and help only. A command's module is imported when the command is called, so `--help` stays quick."""

import os
import sys
from enum import Enum
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from bitnet_cli import __version__
from bitnet_cli.errors import BitnetError

app = typer.Typer(
    name="bitnet",
    help="Run 1-bit large language models (ternary weights) on this computer's CPU.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Try: bitnet run -p 'Once upon a time'   (a small model ships inside; nothing is downloaded)",
)


class EmbeddingType(str, Enum):
    f16 = "f16"
    q8_0 = "q8_0"
    q6_k = "q6_k"
    q4_0 = "q4_0"


class CacheType(str, Enum):
    f32 = "f32"
    f16 = "f16"
    q8 = "q8"
    q4 = "q4"
    q3 = "q3"


class WeightBits(str, Enum):
    auto = "auto"
    two = "2"
    less = "1.6"


class Pooling(str, Enum):
    last = "last"
    mean = "mean"
    none = "none"


CACHE_HELP = "KV cache. q8, q4, q3: about 8, 4, 3 bits a number, less memory and quicker at long contexts, less exact; f32: every bit."


class Activations(str, Enum):
    auto = "auto"
    int8 = "int8"
    float = "float"


class QuantizedType(str, Enum):
    i2_s = "i2_s"
    tq1_0 = "tq1_0"
    tq2_0 = "tq2_0"
    q2_0 = "q2_0"
    f16 = "f16"


class I2SLayout(str, Enum):
    auto = "auto"
    x86 = "x86"
    arm = "arm"


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"bitnet {__version__}")
        raise typer.Exit


@app.callback()
def common(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")] = False,
) -> None:
    pass


@app.command()
def run(
    model: Annotated[Path | None, typer.Option("-m", "--model", help="GGUF file. Without it, the small model inside the package.")] = None,
    prompt: Annotated[str | None, typer.Option("-p", "--prompt", help="Text to continue. '-' or a pipe: read it from stdin.")] = None,
    file: Annotated[Path | None, typer.Option("-f", "--file", help="Read the prompt from this file.")] = None,
    n_predict: Annotated[int, typer.Option("-n", "--n-predict", "--max-tokens", help="Tokens to write, at most.")] = 128,
    threads: Annotated[int, typer.Option("-t", "--threads", help="Threads; 0: physical cores this process may use.")] = 0,
    ctx_size: Annotated[int, typer.Option("-c", "--ctx-size", help="Context in tokens; 0: 2048, or the model's if smaller.")] = 0,
    cache_type: Annotated[CacheType, typer.Option("--cache-type", help=CACHE_HELP)] = CacheType.f16,
    weights: Annotated[
        WeightBits, typer.Option("--weights", help="Bits a weight that each token reads: 2, or 1.6 with more memory. Same text.")
    ] = WeightBits.auto,
    temperature: Annotated[float, typer.Option("--temp", "--temperature", help="0: always the likeliest token.")] = 0.8,
    top_k: Annotated[int, typer.Option("--top-k", help="Keep the k likeliest tokens; 0: all.")] = 40,
    top_p: Annotated[float, typer.Option("--top-p", help="Keep the likeliest tokens up to this total probability.")] = 0.95,
    min_p: Annotated[float, typer.Option("--min-p", help="Keep tokens at least this likely, relative to the likeliest.")] = 0.05,
    repeat_penalty: Annotated[float, typer.Option("--repeat-penalty", help="Above 1: recent tokens become less likely.")] = 1.0,
    seed: Annotated[int, typer.Option("-s", "--seed", help="Same seed, same text; -1: random, and printed.")] = -1,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="No notes and timings on stderr.")] = False,
) -> None:
    """Generate text. The text goes to stdout, everything else to stderr."""
    from bitnet_cli.commands import run as command

    command.run(
        model,
        prompt=prompt,
        file=file,
        n_predict=n_predict,
        threads=threads,
        ctx_size=ctx_size,
        cache_type=cache_type.value,
        weight_bits=weights.value,
        sampling=command.Sampling(temperature, top_k, top_p, min_p, repeat_penalty, seed),
        quiet=quiet,
    )


@app.command()
def perplexity(
    model: Annotated[Path | None, typer.Option("-m", "--model", help="GGUF file. Without it, the small model inside the package.")] = None,
    file: Annotated[Path | None, typer.Option("-f", "--file", help="The text to score; without it, stdin.")] = None,
    ctx_size: Annotated[int, typer.Option("-c", "--ctx-size", help="Tokens a window; 0: 2048, or the model's if smaller.")] = 0,
    stride: Annotated[int, typer.Option("--stride", help="Tokens a window advances by; 0: the whole window.")] = 0,
    special: Annotated[bool, typer.Option("--special", help="Read control tokens in the text, such as <|endoftext|>.")] = False,
    threads: Annotated[int, typer.Option("-t", "--threads", help="Threads; 0: physical cores this process may use.")] = 0,
    cache_type: Annotated[CacheType, typer.Option("--cache-type", help=CACHE_HELP)] = CacheType.f32,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="No notes and progress on stderr.")] = False,
) -> None:
    """Measure how well a model predicts a text."""
    from bitnet_cli.commands import perplexity as command

    command.perplexity(
        model,
        file=file,
        ctx_size=ctx_size,
        stride=stride,
        special=special,
        threads=threads,
        cache_type=cache_type.value,
        as_json=as_json,
        quiet=quiet,
    )


@app.command()
def embed(
    texts: Annotated[list[str] | None, typer.Argument(metavar="[TEXT]...", help="Texts to embed; without any, the lines of stdin.")] = None,
    model: Annotated[Path | None, typer.Option("-m", "--model", help="GGUF file of an embedding model.")] = None,
    file: Annotated[Path | None, typer.Option("-f", "--file", help="Read texts from this file, one a line.")] = None,
    pooling: Annotated[
        Pooling | None, typer.Option("--pooling", help="Vector of the last token, mean of all, or one a token. Default: as the model says.")
    ] = None,
    normalize: Annotated[bool, typer.Option("--normalize/--no-normalize", help="Divide each vector by its length.")] = True,
    prompt: Annotated[str | None, typer.Option("--prompt", help="Put this before every text, such as 'query: '.")] = None,
    instruction: Annotated[
        str | None, typer.Option("--instruction", help="For queries: the task in a sentence, put before as 'Instruct: TASK / Query: '.")
    ] = None,
    ctx_size: Annotated[int, typer.Option("-c", "--ctx-size", help="Most tokens of a text; 0: 2048, or the model's if smaller.")] = 0,
    threads: Annotated[int, typer.Option("-t", "--threads", help="Threads; 0: physical cores this process may use.")] = 0,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Write a NumPy array (texts, dimensions), float32, to this .npy file.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the output if it exists.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout, instead of a JSON array a line.")] = False,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="No notes and progress on stderr.")] = False,
) -> None:
    """Turn texts into vectors whose products tell how alike the texts are."""
    from bitnet_cli.commands import embed as command

    command.embed(
        texts or [],
        model,
        file=file,
        pooling=pooling.value if pooling else None,
        normalize=normalize,
        prompt=prompt,
        instruction=instruction,
        ctx_size=ctx_size,
        threads=threads,
        output=command.Output(output, as_json, force),
        quiet=quiet,
    )


@app.command()
def convert(
    source: Annotated[str, typer.Argument(help="Hugging Face folder (config.json, *.safetensors, tokenizer files), or hub id owner/name.")],
    output: Annotated[
        Path | None, typer.Option("-o", "--output", "--outfile", help="GGUF file to write. Default: models/NAME.gguf.", show_default=False)
    ] = None,
    outtype: Annotated[
        QuantizedType, typer.Option("--outtype", help="Ternary weights. llama.cpp reads tq1_0, tq2_0, q2_0; f16: weight * scale.")
    ] = QuantizedType.i2_s,
    embedding_type: Annotated[EmbeddingType, typer.Option("--embedding-type", help="Type of the embedding and head.")] = EmbeddingType.f16,
    ternarise: Annotated[
        bool, typer.Option("--ternarise", "--ternarize", help="Round float weights that nothing marks as trained for ternary values.")
    ] = False,
    activations: Annotated[
        Activations,
        typer.Option("--activations", help="What the model multiplies by: int8 (BitNet) or float (TriLM). auto: by the weights."),
    ] = Activations.auto,
    revision: Annotated[str | None, typer.Option("--revision", help="Hub: branch, tag or commit. Default: main.")] = None,
    token: Annotated[str | None, typer.Option("--token", help="Hub: access token; HF_TOKEN keeps it out of process lists.")] = None,
    cache_dir: Annotated[Path | None, typer.Option("--cache-dir", help="Hub: folder of the cache. Default: HF_HUB_CACHE.")] = None,
    offline: Annotated[bool, typer.Option("--offline", "--local-files-only", help="Hub: use the cache only.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace the output if it exists.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be written and what would be lost; write nothing.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="No progress on stderr.")] = False,
) -> None:
    """Convert a Hugging Face folder or repository to one packed GGUF file."""
    from bitnet_cli.commands import convert as command

    command.convert(
        source,
        output,
        outtype=outtype.value,
        embedding_type=embedding_type.value,
        ternarise=ternarise,
        activations=activations.value,
        hub=command.HubOptions(revision, token, cache_dir, offline),
        force=force,
        dry_run=dry_run,
        as_json=as_json,
        quiet=quiet,
    )


@app.command()
def quantize(
    source: Annotated[Path, typer.Argument(metavar="IN", help="GGUF file with float or ternary weights.")],
    output: Annotated[Path, typer.Argument(metavar="OUT", help="GGUF file to write.")],
    kind: Annotated[
        QuantizedType,
        typer.Argument(metavar="TYPE", help="Type of the ternary weights. llama.cpp reads all but i2_s; f16: weight * scale."),
    ] = QuantizedType.i2_s,
    embedding_type: Annotated[EmbeddingType | None, typer.Option("--embedding-type", help="Default: as in the input.")] = None,
    i2s_layout: Annotated[
        I2SLayout, typer.Option("--i2s-layout", help="Order of I2_S in IN. arm: as bitnet.cpp packs on ARM; auto: what it looks like.")
    ] = I2SLayout.auto,
    ternarise: Annotated[
        bool, typer.Option("--ternarise", "--ternarize", help="Round float weights even if the architecture is not a BitNet one.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace the output if it exists.")] = False,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="No progress on stderr.")] = False,
) -> None:
    """Change the type of a GGUF file's ternary weights, and of its embedding."""
    from bitnet_cli.commands import quantize as command

    embedding = embedding_type.value if embedding_type else None
    command.quantize(
        source,
        output,
        kind.value,
        embedding_type=embedding,
        i2_s_layout=i2s_layout.value,
        ternarise=ternarise,
        force=force,
        quiet=quiet,
    )


@app.command()
def inspect(
    model: Annotated[
        Path | None, typer.Argument(metavar="FILE", help="GGUF file or checkpoint folder. Without it, the small model in the package.")
    ] = None,
    check: Annotated[bool, typer.Option("--check", help="Read all weights: every code and number must be usable. Exit 3 if not.")] = False,
    tensors: Annotated[bool, typer.Option("--tensors", help="List every tensor.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout; with --check, a SHA-256 of every tensor.")] = False,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="No progress on stderr.")] = False,
) -> None:
    """Show what a model file holds, and which commands work on it."""
    from bitnet_cli.commands import inspect as command

    command.inspect(model, full=check, tensors=tensors, as_json=as_json, quiet=quiet)


def _fail(error: BaseException, code: int) -> NoReturn:
    sys.stdout.flush()
    print(f"bitnet: error: {error}", file=sys.stderr)  # noqa: T201
    raise SystemExit(code)


def _open_closed_streams() -> None:
    """Started with a stream closed (`bitnet run >&-`), Python has None in its place, and print(file=None) would write to stdout."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: PTH123, SIM115


def main() -> None:
    """Entry point. Exit codes: see bitnet_cli.errors; 130 on Ctrl-C."""
    _open_closed_streams()
    try:
        app()
    except KeyboardInterrupt:  # Typer makes its own of most of them
        raise SystemExit(130) from None
    except BitnetError as error:
        _fail(error, error.exit_code)
    except BrokenPipeError:
        # The reader went away (`| head`): say nothing. Point stdout at nowhere so that interpreter exit does not complain either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(1) from None
    except OSError as error:
        _fail(error, 1)
