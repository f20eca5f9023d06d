"""docs/cli.md from the options of the commands: `python scripts/make_cli_docs.py`, with --check to see whether it is as it should be.

Names, help, defaults and ranges are read from the functions in bitnet_cli/options, so the page says what `--help` says. What a command
does in more words, and examples, stand below.
"""

import enum
import inspect
import sys
import typing
from pathlib import Path
from types import NoneType, UnionType

import typer

from bitnet_cli.cli import app
from bitnet_cli.options.groups import signature_of

PAGE = Path(__file__).resolve().parent.parent / "docs" / "cli.md"
TYPES = {str: "TEXT", int: "N", float: "X", Path: "FILE"}

HEAD = """# The command `bitnet`

<!-- Made by scripts/make_cli_docs.py from the options themselves; a test fails when it is stale. -->

Answers go to stdout, everything else to stderr. Progress is shown on a terminal only; `NO_COLOR` and `TERM=dumb` are respected, and a pipe
never gets a control sequence.

**A model** is named by what `bitnet list` shows: the name of an embedded model (`tiny`), of a file in your model folder, or a hub id
`owner/name` (`owner/name:i2_s` and `owner/name:FILE` say which GGUF file of it); or by a path, said with a slash or the ending:
`model.gguf`, `./folder`. An address pasted from the hub works as its id. `bitnet pull` downloads, and converts where needed; so does
`run -hf`. Other commands ask on a terminal, and end elsewhere with the line to run.

**Your model folder** is `BITNET_MODELS`, else `bitnet/models` in the platform's folder for data of programs (`~/.local/share` on Linux).
There lands what `pull` fetches and what `convert` writes without `-o`; in a folder that has `models/`, as a clone of this project, it lands
in that. Names are looked up in your folder first, then in `models/`, then in the hub's cache.

**Exit codes**: 0 done, 1 something failed, 2 the command line asks for something impossible, 3 a file is damaged, 4 it is of a kind that is
not supported, 130 Ctrl-C.

**Environment**: `BITNET_RAW=1` makes `--raw` the default of `run`. `BITNET_ISA` forces an instruction set, `BITNET_CACHE_DIR` names the
folder of compiled kernels, `BITNET_SHARED_CACHE_DIR` one of all users that is only read (`/var/cache/bitnet`); `HF_TOKEN`, `HF_HOME`,
`HF_HUB_CACHE`, `HF_HUB_OFFLINE` and `HF_ENDPOINT` are those of huggingface_hub.

`bitnet --version` prints the version, the CPU and its instruction set; `bitnet --install-completion` completes commands, options and names
of models in your shell.
"""

EXAMPLES = {
    "run": """bitnet run -p "Once upon a time" -n 40 --seed 1
echo "And the king said" | bitnet run --temp 0 -n 20 --stop "." --json
bitnet run tiny -p "And the king said" -n 20 --logprobs 3 --json -q
bitnet run --list""",
    "perplexity": """bitnet perplexity -f README.md -c 128""",
    "inspect": """bitnet inspect tiny --check
bitnet inspect tiny --json""",
    "quantize": """bitnet quantize models/model.gguf models/model-tq2.gguf tq2_0""",
    "convert": """bitnet convert microsoft/bitnet-b1.58-2B-4T
bitnet convert path/to/folder -o model.gguf --dry-run""",
    "embed": """bitnet embed -m models/bitnet-embedding-0.6b.gguf "a text" "another"
bitnet embed -m models/bitnet-embedding-0.6b.gguf -f lines.txt -o vectors.npy""",
    "serve": """bitnet serve --port 8080
bitnet serve model.gguf --parallel 8 -c 4096""",
    "bench": """bitnet bench tiny -p 32 -n 16 -r 1
bitnet bench --shape 2B-4T""",
}


def _type_name(kind: object, info: object) -> str:
    """What stands for a value: FILE, N, or the words to choose from."""
    if getattr(info, "metavar", None):
        return str(info.metavar)
    kinds = [k for k in typing.get_args(kind) if k is not NoneType] if isinstance(kind, UnionType) else [kind]
    kind = kinds[0]
    if typing.get_origin(kind) is list:
        kind = typing.get_args(kind)[0]
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        return "|".join(str(member.value) for member in kind)
    return TYPES.get(kind, "VALUE")  # type: ignore[call-overload]


def _default(value: object) -> str:
    if value is None or value is False or value == "":
        return ""
    if isinstance(value, enum.Enum):
        value = value.value
    return f" Default: {'on' if value is True else value}."


def _range(info: object) -> str:
    low, high = getattr(info, "min", None), getattr(info, "max", None)
    if low is None and high is None:
        return ""
    return f" {'' if low is None else low} to {'' if high is None else high}." if high is not None else f" {low} or more."


def _row(name: str, parameter: inspect.Parameter) -> tuple[str, str, bool]:
    """Group, line of the page, and whether it is an argument."""
    kind, *metadata = typing.get_args(parameter.annotation)
    info = next(m for m in metadata if isinstance(m, (typer.models.OptionInfo, typer.models.ArgumentInfo)))
    text = " ".join((info.help or "").split())
    text += "" if not text or text.endswith((".", ")")) else "."
    argument = isinstance(info, typer.models.ArgumentInfo)
    first = [info.default] if isinstance(info.default, str) else []  # inside Annotated, Typer keeps the first name there
    declared = [*first, *(info.param_decls or ())]
    if argument:
        called = (info.metavar or name.upper()).strip("[]")
        return "", f"- `{called if parameter.default is inspect.Parameter.empty else f'[{called}]'}`: {text}", True
    flag = kind is bool or (isinstance(kind, UnionType) and bool in typing.get_args(kind))
    names = ", ".join(f"`{one}`" for one in (declared or [f"--{name.replace('_', '-')}"])).replace("/--", "`, `--")
    value = "" if flag else f" *{_type_name(kind, info)}*"
    shown = parameter.default if info.show_default is not False and not (flag and "/" not in names and not parameter.default) else None
    return info.rich_help_panel or "Options", f"- {names}{value}: {text}{_range(info)}{_default(shown)}", False


def _command(name: str, callback: object) -> str:
    parts = [f"## bitnet {name}\n", (inspect.getdoc(callback) or "") + "\n"]
    groups: dict[str, list[str]] = {}
    arguments, words = [], []
    for parameter in signature_of(callback).parameters.values():
        if not typing.get_args(parameter.annotation):
            continue
        if any(getattr(info, "hidden", False) for info in typing.get_args(parameter.annotation)):
            continue
        group, line, argument = _row(parameter.name, parameter)
        if argument:
            arguments.append(line)
            words.append(line.split("`")[1])
        else:
            groups.setdefault(group, []).append(line)
    parts.append("```text\n" + " ".join([f"bitnet {name}", "[OPTIONS]", *words]) + "\n```\n")
    parts += [*arguments, ""] if arguments else []
    for group, lines in groups.items():
        parts += [f"### {group}\n", *lines, ""]
    if name in EXAMPLES:
        parts += ["### Examples\n", f"```sh\n{EXAMPLES[name]}\n```\n"]
    return "\n".join(parts)


def page() -> str:
    """The whole page."""
    parts = [HEAD]
    for command in app.registered_commands:
        callback = command.callback
        assert callback is not None
        parts.append(_command(command.name or callback.__name__, callback))
    for group in app.registered_groups:
        inner = group.typer_instance
        assert inner is not None and group.name
        if inner.registered_callback is not None:
            parts.append(_command(group.name, inner.registered_callback.callback))
        for command in inner.registered_commands:
            assert command.callback is not None
            parts.append(_command(f"{group.name} {command.name or command.callback.__name__}", command.callback))
    return "\n".join(parts).rstrip() + "\n"


def main() -> int:
    made = page()
    if "--check" in sys.argv[1:]:
        stale = not PAGE.exists() or PAGE.read_text(encoding="utf-8") != made
        if stale:
            print(f"{PAGE} is stale; run python scripts/make_cli_docs.py", file=sys.stderr)
        return int(stale)
    PAGE.write_text(made, encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
