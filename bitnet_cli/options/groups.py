"""Options in groups: a dataclass for each group, so that a command with many options has few parameters.

    @dataclass(frozen=True)
    class Sampling:
        temperature: Annotated[float, typer.Option("--temp")] = 0.8

    @grouped
    def run(sampling: Sampling, seed: Annotated[int, typer.Option()] = -1) -> None: ...

makes a function with the parameters `temperature` and `seed`, which is what Typer looks at.
"""

import dataclasses
import functools
import inspect
import typing
from collections.abc import Callable
from typing import Any


def grouped(command: Callable[..., None]) -> Callable[..., None]:
    """`command`, with each parameter that is annotated with a dataclass replaced by the fields of that. All have defaults."""
    # Not typing.get_type_hints: on Python 3.10 it wraps what has the default None in Optional, which hides the option from Typer.
    signature = inspect.signature(command, eval_str=True)
    kinds_of = {name: parameter.annotation for name, parameter in signature.parameters.items()}
    groups = {name: kind for name, kind in kinds_of.items() if dataclasses.is_dataclass(kind) and isinstance(kind, type)}
    parameters, owner = [], {}
    for name, parameter in signature.parameters.items():
        if name not in groups:
            parameters.append(parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY))
            continue
        kinds = typing.get_type_hints(groups[name], include_extras=True)
        for field in dataclasses.fields(groups[name]):
            owner[field.name] = name
            kind = inspect.Parameter.KEYWORD_ONLY
            parameters.append(inspect.Parameter(field.name, kind, default=field.default, annotation=kinds[field.name]))

    @functools.wraps(command)
    def flat(**values: Any) -> None:
        given: dict[str, dict[str, Any]] = {name: {} for name in groups}
        own = {}
        for name, value in values.items():
            if name in owner:
                given[owner[name]][name] = value
            else:
                own[name] = value
        command(**own, **{name: groups[name](**fields) for name, fields in given.items()})

    flat.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    flat.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters} | {"return": None}
    return flat


def signature_of(command: Any) -> inspect.Signature:
    """Parameters of a command with their annotations as objects, as Typer sees them."""
    return inspect.signature(command, eval_str=True)
