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


class QuantizedType(str, Enum):
    i2_s = "i2_s"


class Flavour(str, Enum):
    master = "master"


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
    cache_type: Annotated[
        CacheType, typer.Option("--cache-type", help="KV cache; f32 doubles its memory and keeps every bit.")
    ] = CacheType.f16,
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
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="No notes and progress on stderr.")] = False,
) -> None:
    """Measure how well a model predicts a text."""
    from bitnet_cli.commands import perplexity as command

    command.perplexity(model, file=file, ctx_size=ctx_size, stride=stride, special=special, threads=threads, as_json=as_json, quiet=quiet)


@app.command()
def convert(
    source: Annotated[Path, typer.Argument(help="Hugging Face folder: config.json, *.safetensors, tokenizer files.")],
    output: Annotated[Path, typer.Option("-o", "--output", "--outfile", help="GGUF file to write.")],
    embedding_type: Annotated[EmbeddingType, typer.Option("--embedding-type", help="Type of the embedding and head.")] = EmbeddingType.f16,
    flavour: Annotated[
        Flavour | None,
        typer.Option("--flavour", help="What the folder does not say. master: plain float weights are BitNet master weights."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the output if it exists.")] = False,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="No progress on stderr.")] = False,
) -> None:
    """Convert a Hugging Face folder to one packed GGUF file."""
    from bitnet_cli.commands import convert as command

    command.convert(
        source, output, embedding_type=embedding_type.value, flavour=flavour.value if flavour else None, force=force, quiet=quiet
    )


@app.command()
def quantize(
    source: Annotated[Path, typer.Argument(metavar="IN", help="GGUF file with f32 or f16 weights, or any this tool wrote.")],
    output: Annotated[Path, typer.Argument(metavar="OUT", help="GGUF file to write.")],
    kind: Annotated[QuantizedType, typer.Argument(metavar="TYPE", help="Type of the ternary weights: i2_s.")] = QuantizedType.i2_s,
    embedding_type: Annotated[EmbeddingType | None, typer.Option("--embedding-type", help="Default: as in the input.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the output if it exists.")] = False,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="No progress on stderr.")] = False,
) -> None:
    """Pack the ternary weights of a GGUF file, and choose the embedding's type."""
    from bitnet_cli.commands import quantize as command

    embedding = embedding_type.value if embedding_type else None
    command.quantize(source, output, kind.value, embedding_type=embedding, force=force, quiet=quiet)


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
