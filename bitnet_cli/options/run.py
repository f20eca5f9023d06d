"""Options of `bitnet run`, in the groups that its help shows."""

from dataclasses import dataclass
from enum import Enum
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from bitnet_cli.model.sampling import Sampling
from bitnet_cli.options.chat import Conversation
from bitnet_cli.options.groups import grouped
from bitnet_cli.options.shared import (
    ACTIVATIONS_HELP,
    CACHE_HELP,
    ENCODING_HELP,
    MMAP_HELP,
    QUERY_HELP,
    Activations,
    CacheType,
    ModelArgument,
    ModelOption,
    QueryType,
)

_text = partial(typer.Option, rich_help_panel="Text")
_choice = partial(typer.Option, rich_help_panel="Choice of tokens")
_engine = partial(typer.Option, rich_help_panel="Memory and speed")
_output = partial(typer.Option, rich_help_panel="Output")

PROMPT_HELP = (
    "A question for a chat model, answered once, or on a terminal in a chat that goes on; for other models a text to continue. '-' or a "
    "pipe: read it from stdin."
)
STDIN_HELP = "A pipe beside -p or QUESTION is the text that they are about. Default: if it is this command's own, and no loop's."
RAW_HELP = "Continue the text of -p, -f or a pipe, in no chat format. BITNET_RAW=1 makes that the default."
ESCAPE_HELP = 'Read \\n, \\t, \\" and \\x41 in -p and --stop as C does. Default: on; never in files, pipes and QUESTION.'
QUESTION_HELP = "A question, answered once. Quotes are needed only where the shell wants them."
HUB_HELP = "A model on the hub; downloaded if it is not here."
SCHEMA_HELP = "The text is JSON of this schema, a file or '{...}' ('-': from stdin); json: any object. No -n: until it is whole."


class WeightBits(str, Enum):
    auto = "auto"
    two = "2"
    less = "1.6"


@dataclass(frozen=True)
class Text:
    """What to answer or to continue, and how far."""

    prompt: Annotated[str | None, _text("-p", "--prompt", help=PROMPT_HELP)] = None
    file: Annotated[Path | None, _text("-f", "--file", help="Read the prompt from this file.")] = None
    stdin: Annotated[bool | None, _text("--stdin/--no-stdin", help=STDIN_HELP, show_default=False)] = None
    raw: Annotated[bool, _text("--raw", "-no-cnv", "--no-conversation", help=RAW_HELP)] = False
    escape: Annotated[bool | None, _text("-e", "--escape/--no-escape", help=ESCAPE_HELP, show_default=False)] = None
    special: Annotated[bool, _text("--special", "-sp", help="Read control tokens in the prompt as such, and show those in the text.")] = (
        False
    )
    encoding: Annotated[str | None, _text("--encoding", help=ENCODING_HELP)] = None
    n_predict: Annotated[
        int | None,
        _text("-n", "--n-predict", "--max-tokens", help="Most tokens to write; -1: no limit. Default: 128; -1 in a chat and for QUESTION."),
    ] = None
    stop: Annotated[
        list[str] | None,
        _text("--stop", "-r", "--reverse-prompt", help="End before this text; may be repeated. \\n: a new line."),
    ] = None
    ignore_eos: Annotated[bool, _text("--ignore-eos", help="Never choose a token that ends the text.")] = False
    json_schema: Annotated[
        str | None,
        _text("--json-schema", "-j", "--schema", "--format", metavar="SCHEMA|FILE|json", help=SCHEMA_HELP),
    ] = None
    regex: Annotated[str | None, _text("--regex", help="The text matches this regular expression (Rust's syntax) as a whole.")] = None


@dataclass(frozen=True)
class Choice:
    """How to choose tokens."""

    temperature: Annotated[float, _choice("--temp", "-temp", "--temperature", help="0: always the likeliest token.")] = Sampling.temperature
    top_k: Annotated[int, _choice("--top-k", help="Keep the k likeliest tokens; 0: all.")] = Sampling.top_k
    top_p: Annotated[float, _choice("--top-p", help="Keep the likeliest tokens up to this total probability.")] = Sampling.top_p
    min_p: Annotated[float, _choice("--min-p", help="Keep tokens at least this likely, relative to the likeliest.")] = Sampling.min_p
    repeat_penalty: Annotated[float, _choice("--repeat-penalty", help="Above 1: recent tokens become less likely.")] = (
        Sampling.repeat_penalty
    )
    repeat_last_n: Annotated[int, _choice("--repeat-last-n", help="How many tokens are recent; 0: none, -1: all.")] = Sampling.repeat_last_n
    presence_penalty: Annotated[float, _choice("--presence-penalty", help="Taken off the logit of each recent token.")] = (
        Sampling.presence_penalty
    )
    frequency_penalty: Annotated[float, _choice("--frequency-penalty", help="Taken off once for each time it was there.")] = (
        Sampling.frequency_penalty
    )
    mirostat: Annotated[int, _choice("--mirostat", help="2: Mirostat 2.0 in place of top-k, top-p and min-p; 0: off.")] = Sampling.mirostat
    mirostat_tau: Annotated[float, _choice("--mirostat-tau", "--mirostat-ent", help="Mirostat: surprise aimed at, in bits a token.")] = (
        Sampling.mirostat_tau
    )
    mirostat_eta: Annotated[float, _choice("--mirostat-eta", "--mirostat-lr", help="Mirostat: how quickly it adapts.")] = (
        Sampling.mirostat_eta
    )
    logit_bias: Annotated[
        list[str] | None,
        _choice(
            "-l", "--logit-bias", metavar="ID(+/-)BIAS", help="Added to the logit of a token: 15+1.5, 15-2; 15-inf: never. Repeatable."
        ),
    ] = None
    seed: Annotated[int, _choice("-s", "--seed", help="Same seed, same text, on every CPU with FMA; -1: random, and printed.")] = (
        Sampling.seed
    )


@dataclass(frozen=True)
class Engine:
    """Memory and speed: the text does not depend on it, or hardly (KV cache)."""

    threads: Annotated[int, _engine("-t", "--threads", help="Threads; 0: physical cores this process may use.")] = 0
    ctx_size: Annotated[int, _engine("-c", "--ctx-size", help="Context in tokens; 0: 2048, or the model's if smaller.")] = 0
    cache_type: Annotated[CacheType, _engine("--cache-type", help=CACHE_HELP)] = CacheType.f16
    activations: Annotated[Activations, _engine("--activations", help=ACTIVATIONS_HELP)] = Activations.auto
    query_type: Annotated[QueryType, _engine("--query-type", help=QUERY_HELP)] = QueryType.f32
    weights: Annotated[
        WeightBits,
        _engine("--weights", help="Bits a weight that each token reads: 2, or 1.6 with more memory. Same text."),
    ] = WeightBits.auto
    mmap: Annotated[bool, _engine("--mmap/--no-mmap", help=MMAP_HELP)] = True
    lookup: Annotated[
        bool,
        _engine("--lookup", help="Guess tokens from what the text repeats: quicker for summaries and edits. Same text."),
    ] = False
    draft: Annotated[int, _engine("--draft", "--draft-max", min=1, max=64, help="--lookup: most tokens of a guess.")] = 15
    prompt_cache: Annotated[
        Path | None,
        _engine("--prompt-cache", help="Keep what was computed of the prompt in this file, and reuse it."),
    ] = None


@dataclass(frozen=True)
class Output:
    """What is printed."""

    as_json: Annotated[bool, _output("--json", help="One JSON object on stdout: text, ids, timings; with --list, the models.")] = False
    logprobs: Annotated[
        int | None,
        _output("--logprobs", min=0, max=1000, help="--json: log-probabilities, with the N likeliest tokens."),
    ] = None
    reasoning: Annotated[bool, _output("--show-reasoning", help="Also print what the model thinks before it answers.")] = False
    stream: Annotated[bool, _output("--stream/--no-stream", help="Print text as it comes, or all of it at the end.")] = True
    verbose: Annotated[bool, _output("--verbose", "--show-timings", help="More about model and timings on stderr.")] = False
    list_models: Annotated[bool, _output("--list", help="List the models on this computer, with their sizes.")] = False
    quiet: Annotated[bool, _output("-q", "--quiet", help="No notes and timings on stderr.")] = False


@dataclass(frozen=True)
class Elsewhere:
    """Options of programs that use a GPU."""

    gpu_layers: Annotated[str | None, typer.Option("-ngl", "--gpu-layers", "--n-gpu-layers", hidden=True)] = None
    device: Annotated[str | None, typer.Option("-dev", "--device", hidden=True)] = None
    split_mode: Annotated[str | None, typer.Option("-sm", "--split-mode", hidden=True)] = None
    tensor_split: Annotated[str | None, typer.Option("-ts", "--tensor-split", hidden=True)] = None
    main_gpu: Annotated[str | None, typer.Option("-mg", "--main-gpu", hidden=True)] = None


@grouped
def run(
    text: Text,
    conversation: Conversation,
    choice: Choice,
    engine: Engine,
    output: Output,
    elsewhere: Elsewhere,
    model_argument: ModelArgument = None,
    question: Annotated[list[str] | None, typer.Argument(metavar="QUESTION", help=QUESTION_HELP)] = None,
    model: ModelOption = None,
    hub: Annotated[str | None, typer.Option("-hf", "-hfr", "--hf-repo", metavar="OWNER/NAME[:QUANT]", help=HUB_HELP)] = None,
    hub_file: Annotated[str | None, typer.Option("-hff", "--hf-file", metavar="FILE", help="The GGUF file of that repository.")] = None,
) -> None:
    """Ask a model, chat with it, or let it continue a text. The text goes to stdout, everything else to stderr."""
    from bitnet_cli.commands import models

    if output.list_models:
        models.list_models(output.as_json)
        return
    from dataclasses import asdict, astuple

    from bitnet_cli.commands import run as command
    from bitnet_cli.commands.loading import find_model
    from bitnet_cli.commands.reporting import Reporter

    if any(value is not None for value in astuple(elsewhere)):
        Reporter(output.quiet).note("this program runs on the CPU; options for a GPU change nothing")
    model, asked = models.chosen_to_ask(model_argument, models.chosen(models.from_hub(hub, hub_file), model), question or [])
    prompt, request = _asked(text, conversation, output, asked, engine.draft if engine.lookup else 0)
    if hub is not None:  # as in llama.cpp, which asks nobody
        find_model(model, consent=True)
    command.run(
        model,
        prompt,
        request,
        command.Sampling(**asdict(choice) | {"logit_bias": command.biases(choice.logit_bias or ())}),
        command.Options(
            engine.ctx_size,
            engine.threads,
            engine.cache_type.value,
            engine.weights.value,
            engine.activations.value,
            engine.query_type.value,
            engine.mmap,
        ),
        command.Show(output.as_json, output.stream, output.verbose, output.quiet, engine.prompt_cache, output.reasoning),
    )


def _asked(text: Text, c: Conversation, output: Output, question: str | None, draft: int) -> tuple[Any, Any]:
    """command.Prompt and command.Request."""
    import os

    from bitnet_cli.commands import run as command
    from bitnet_cli.commands.chat.talk import Wishes

    quoted = command.unescaped if text.escape is not False else str
    given = question is not None or text.prompt is not None or text.file is not None
    chat = c.conversation or (c.system is not None and not given)
    raw = text.raw or (os.environ.get("BITNET_RAW", "") not in ("", "0") and not chat and c.system is None and c.chat_template is None)
    stops = [quoted(stop) for stop in text.stop or []]
    prompted = not chat and (question is not None or text.file is not None or text.prompt not in (None, "-"))
    grammar = command.read_grammar(text.json_schema, text.regex, stdin_is_free=prompted)
    limit = (128 if grammar is None and question is None else -1) if text.n_predict is None else text.n_predict
    shown = (output.as_json, output.quiet, output.verbose)
    wishes = Wishes(c.system, text.n_predict, c.context_shift, *shown, draft, stops, grammar, c.single_turn, output.reasoning)
    prompt = command.Prompt(
        command.unescaped(question) if question is not None and text.escape else question,
        quoted(text.prompt) if text.prompt is not None else None,
        text.file,
        chat,
        c.single_turn,
        raw,
        text.special,
        False if text.json_schema == "-" else text.stdin,
        c.chat_template,
        c.template_arg,
        wishes,
        text.encoding,
    )
    return prompt, command.Request(limit, stops, None, text.ignore_eos, output.logprobs, draft, grammar, text.special)
