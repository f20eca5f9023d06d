"""Which model is meant, and which there are. Nothing heavy is imported."""

import shlex

from bitnet_cli.commands.reporting import byte_size, print_json, put
from bitnet_cli.errors import UsageError, printable
from bitnet_cli.model.names import available


def chosen(argument: str | None, option: str | None) -> str | None:
    """The model of the command line: MODEL or -m MODEL, not both; None: neither."""
    if argument is not None and option is not None:
        raise UsageError(f"give the model once: {argument} or -m {option}")
    return argument if argument is not None else option


def chosen_to_ask(argument: str | None, option: str | None, words: list[str]) -> tuple[str | None, str | None]:
    """The model, and the question of the command line: MODEL QUESTION, or -m MODEL QUESTION. None where there is none."""
    if option is not None:
        words = words if argument is None else [argument, *words]
    return argument if option is None else option, " ".join(words) if words else None


def list_models(as_json: bool) -> None:
    """`bitnet run --list`: every model that has a name here, on stdout."""
    models = available()
    if as_json:
        listed = [{"name": m.name, "source": m.source, "path": str(m.path), "bytes": m.size, "about": m.about or None} for m in models]
        print_json({"models": listed})
        return
    width = max(len(printable(m.name)) for m in models)
    for m in models:
        about = m.about or shlex.quote(str(m.path))
        put(f"{printable(m.name):<{width}}  {byte_size(m.size):>9}  {m.source:<8}  {printable(about)}")
