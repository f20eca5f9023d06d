"""The child of jinja.py: one job in JSON on stdin, one answer in JSON on stdout.

Imported under this name alone, by a Python that finds nothing of this package and nothing but Jinja beside its own library (child.py).
Globals and filters are those that Hugging Face's `apply_chat_template` gives a template (transformers, utils/chat_template_utils.py).

A template sees what messages say, and every character that comes out of it has an origin (origins.py, loaded by its place). Only constants
of the template's source, the names of roles and the texts of special tokens begin as the template's.
"""

import datetime
import importlib.util
import json
import re
import sys
from collections.abc import Callable, Iterable
from importlib.machinery import PathFinder
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from bitnet_cli.text.chat import origins
else:
    _found = PathFinder.find_spec("origins", [str(Path(__file__).absolute().parent)])
    origins = importlib.util.module_from_spec(_found)
    _found.loader.exec_module(origins)

CPU_SECONDS = 1.0
MEMORY = 256 << 20  # bytes of address space

ROLES = ("system", "user", "assistant", "tool")  # nobody's words


def variables(job: dict[str, Any]) -> dict[str, Any]:
    """What the template is given: messages, special tokens, and what the user said."""
    messages: list[dict[str, Any]] = origins.as_texts(job["messages"])
    for message in messages:
        if message["role"] in ROLES:
            message["role"] = origins.told(message["role"])
    for index, first in job["answers"]:
        content = messages[index]["content"]
        messages[index]["content"] = origins.Text(content, "".join(map(chr, range(first, first + len(content)))))
    tokens: dict[str, Any] = {name: origins.told(text) for name, text in job["tokens"].items()}
    given: dict[str, Any] = origins.as_texts(job["variables"])
    return tokens | given | {"messages": messages}


def limit() -> None:
    """One second of CPU time and 256 MB from here on, and no files written. Windows has no such limits; the parent's clock has to do."""
    try:
        import resource
        import signal
    except ImportError:
        return
    for what, most in ((resource.RLIMIT_AS, MEMORY), (resource.RLIMIT_FSIZE, 0), (resource.RLIMIT_CORE, 0)):
        try:
            resource.setrlimit(what, (most, most))
        except (ValueError, OSError):  # macOS knows no limit of the address space
            continue
    signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)  # the signal's default is to end the process


class RefusedError(Exception):
    """The template called raise_exception."""


def _generator() -> Any:
    """Jinja's compiler, but for strings of the source: they are the template's, in tables too that it has put together itself."""
    from jinja2.compiler import CodeGenerator

    class Generator(CodeGenerator):
        def _constant(self, value: Any) -> str:
            if type(value) is str:
                self.environment.constants.append(origins.told(value))  # type: ignore[attr-defined]
                return f"environment.constants[{len(self.environment.constants) - 1}]"  # type: ignore[attr-defined]
            if type(value) is list:
                return f"[{', '.join(map(self._constant, value))}]"
            if type(value) is tuple:
                return f"({''.join(f'{self._constant(item)}, ' for item in value)})"
            if type(value) is dict:
                return f"{{{', '.join(f'{self._constant(name)}: {self._constant(item)}' for name, item in value.items())}}}"
            return str(value) if isinstance(value, float) else repr(value)

        def _output_const_repr(self, group: Iterable[Any]) -> str:
            return self._constant("".join(group))

        def visit_Const(self, node: Any, frame: Any) -> None:  # noqa: N802
            self.write(self._constant(node.as_const(frame.eval_ctx)))

        def visit_TemplateData(self, node: Any, frame: Any) -> None:  # noqa: N802
            if frame.eval_ctx.volatile or frame.eval_ctx.autoescape:
                super().visit_TemplateData(node, frame)
            else:
                self.write(self._constant(node.data))

    return Generator


def _extension() -> Any:
    import jinja2.ext
    import jinja2.nodes

    class Generation(jinja2.ext.Extension):
        """`{% generation %}`, which marks answers for training: its body as it is, in a scope of its own."""

        tags = {"generation"}  # noqa: RUF012

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return jinja2.nodes.CallBlock(self.call_method("_body"), [], [], body).set_lineno(line)

        def _body(self, caller: Callable[[], str]) -> str:
            return caller()

    return Generation


def _sandbox() -> Any:
    """An environment whose strings have origins."""
    import jinja2.filters
    import jinja2.runtime
    import jinja2.sandbox

    class Sandbox(jinja2.sandbox.ImmutableSandboxedEnvironment):
        code_generator_class = _generator()

        def wrap_str_format(self, value: Any) -> Any:
            plain, form = super().wrap_str_format(value), getattr(value, "__self__", None)
            if plain is None or type(form) is not origins.Text:
                return plain
            if value.__name__ == "format_map":
                return lambda names: origins.formatted(form, plain(names), (), dict(names))
            return lambda *args, **names: origins.formatted(form, plain(*args, **names), args, names)

    @jinja2.pass_eval_context
    def join(context: Any, value: Any, d: str = "", attribute: Any = None) -> Any:
        return jinja2.filters.do_join(context, value, origins.Text(d) if type(d) is str else d, attribute)

    def str_join(seq: Iterable[Any]) -> str:
        return origins.joined(map(str, seq))

    jinja2.runtime.str_join = str_join  # what `~` calls; this process renders one template, and ends
    environment = Sandbox(trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", _extension()])
    environment.concat = origins.joined  # type: ignore[method-assign]
    environment.constants = []  # type: ignore[attr-defined]
    environment.filters |= {"join": join, "safe": origins.safe}
    return environment


def environment() -> Any:
    """The sandbox, with what Hugging Face gives a template beside Jinja's own."""
    import jinja2.exceptions
    import jinja2.utils

    class Namespace(jinja2.utils.Namespace):
        """As Hugging Face has it: without names that begin with an underscore."""

        def __init__(*args: Any, **names: Any) -> None:
            jinja2.utils.Namespace.__init__(args[0], {name: _public(name, value) for name, value in dict(*args[1:], **names).items()})

        def __setitem__(self, name: str, value: Any) -> None:
            super().__setitem__(name, _public(name, value))

    def _public(name: str, value: Any) -> Any:
        if isinstance(name, str) and name.startswith("_"):
            raise jinja2.exceptions.SecurityError(f"a namespace cannot have {name!r}")
        return value

    def raise_exception(message: str) -> NoReturn:
        raise RefusedError(message)

    def tojson(value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    sandbox = _sandbox()
    sandbox.filters["tojson"] = tojson
    sandbox.globals["raise_exception"] = raise_exception
    sandbox.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(form)
    sandbox.globals["namespace"] = Namespace
    return sandbox


def render(job: dict[str, Any]) -> origins.Text:
    """The rendered text. Raises what the template makes Jinja raise."""
    sandbox = environment()
    limit()
    text, most = [], job["limit"]
    for part in sandbox.from_string(job["template"]).generate(variables(job)):
        most -= len(part)
        if most < 0:
            raise RefusedError("gives too much text")
        text.append(part)
    return origins.joined(text)


def main() -> None:
    """Read, render, answer."""
    job = json.loads(sys.stdin.buffer.read())
    answer: dict[str, Any]
    try:
        text = render(job)
        # Two halves of a character that meet would be one where this is read, and every character counts.
        answer = {"text": re.sub("[\ud800-\udfff]", "\ufffd", text), "runs": origins.runs(text._from)}
    except RefusedError as error:
        answer = {"error": f"refuses these messages: {error}"}
    except MemoryError:
        answer = {"error": "needs more than 256 MB"}
    except Exception as error:
        answer = {"error": f"{type(error).__name__}: {error}"[:500]}
    sys.stdout.write(json.dumps(answer, separators=(",", ":")))
