"""Options of `bitnet run`."""

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from bitnet_cli.options.chat import ConversationOption, ShiftOption, SystemOption, TemplateOption, VerboseOption
from bitnet_cli.options.shared import ACTIVATIONS_HELP, CACHE_HELP, Activations, CacheType, ModelArgument, ModelOption


class WeightBits(str, Enum):
    auto = "auto"
    two = "2"
    less = "1.6"


def run(
    model_argument: ModelArgument = None,
    model: ModelOption = None,
    prompt: Annotated[str | None, typer.Option("-p", "--prompt", help="Text to continue. '-' or a pipe: read it from stdin.")] = None,
    file: Annotated[Path | None, typer.Option("-f", "--file", help="Read the prompt from this file.")] = None,
    n_predict: Annotated[
        int | None, typer.Option("-n", "--n-predict", "--max-tokens", help="Tokens to write, at most; -1: no limit. 128, none in a chat.")
    ] = None,
    conversation: ConversationOption = False,
    system: SystemOption = None,
    chat_template: TemplateOption = None,
    context_shift: ShiftOption = True,
    verbose: VerboseOption = False,
    threads: Annotated[int, typer.Option("-t", "--threads", help="Threads; 0: physical cores this process may use.")] = 0,
    ctx_size: Annotated[int, typer.Option("-c", "--ctx-size", help="Context in tokens; 0: 2048, or the model's if smaller.")] = 0,
    cache_type: Annotated[CacheType, typer.Option("--cache-type", help=CACHE_HELP)] = CacheType.f16,
    activations: Annotated[Activations, typer.Option("--activations", help=ACTIVATIONS_HELP)] = Activations.auto,
    weights: Annotated[
        WeightBits, typer.Option("--weights", help="Bits a weight that each token reads: 2, or 1.6 with more memory. Same text.")
    ] = WeightBits.auto,
    temperature: Annotated[float, typer.Option("--temp", "--temperature", help="0: always the likeliest token.")] = 0.8,
    top_k: Annotated[int, typer.Option("--top-k", help="Keep the k likeliest tokens; 0: all.")] = 40,
    top_p: Annotated[float, typer.Option("--top-p", help="Keep the likeliest tokens up to this total probability.")] = 0.95,
    min_p: Annotated[float, typer.Option("--min-p", help="Keep tokens at least this likely, relative to the likeliest.")] = 0.05,
    repeat_penalty: Annotated[float, typer.Option("--repeat-penalty", help="Above 1: recent tokens become less likely.")] = 1.0,
    seed: Annotated[int, typer.Option("-s", "--seed", help="Same seed, same text; -1: random, and printed.")] = -1,
    list_models: Annotated[bool, typer.Option("--list", help="List the models on this computer, with their sizes.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="With --list, or for each answer of a chat: one JSON object on stdout.")] = False,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="No notes and timings on stderr.")] = False,
) -> None:
    """Generate text. The text goes to stdout, everything else to stderr."""
    from bitnet_cli.commands import opening

    if list_models:
        opening.list_models(as_json)
        return
    from bitnet_cli.commands import run as command
    from bitnet_cli.commands.chat import Wishes

    command.run(
        opening.chosen(model_argument, model),
        prompt=prompt,
        file=file,
        n_predict=128 if n_predict is None else n_predict,
        threads=threads,
        ctx_size=ctx_size,
        cache_type=cache_type.value,
        activations=activations.value,
        weight_bits=weights.value,
        sampling=command.Sampling(temperature, top_k, top_p, min_p, repeat_penalty, seed),
        quiet=quiet,
        conversation=conversation or system is not None,
        chat_template=chat_template,
        chat=Wishes(system, n_predict, context_shift, as_json, quiet, verbose),
    )
