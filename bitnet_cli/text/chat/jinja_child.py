"""The child of jinja.py: one job in JSON on stdin, one answer in JSON on stdout.

Imported under this name alone, by a Python that finds nothing of this package and nothing but Jinja beside its own library (child.py).
Globals and filters are those that Hugging Face's `apply_chat_template` gives a template (transformers, utils/chat_template_utils.py).
"""

import datetime
import json
import sys
from typing import Any, NoReturn

CPU_SECONDS = 1.0
MEMORY = 256 << 20  # bytes of address space


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


def render(job: dict[str, Any]) -> str:
    """The rendered text. Raises what the template makes Jinja raise."""
    import jinja2
    import jinja2.ext
    import jinja2.nodes
    import jinja2.sandbox

    class Generation(jinja2.ext.Extension):
        """`{% generation %}`, which marks answers for training: its body as it is."""

        tags = {"generation"}  # noqa: RUF012

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            return jinja2.nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True)).set_lineno(line)

    def raise_exception(message: str) -> NoReturn:
        raise RefusedError(message)

    def tojson(value: Any, ensure_ascii: bool = False, **options: Any) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, **options)

    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", Generation]
    )
    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(form)
    limit()
    names = ("messages", "bos_token", "eos_token", "add_generation_prompt")
    text, most = [], job["limit"]
    for part in environment.from_string(job["template"]).generate({name: job[name] for name in names}):
        most -= len(part)
        if most < 0:
            raise RefusedError("gives too much text")
        text.append(part)
    return "".join(text)


def main() -> None:
    """Read, render, answer."""
    job = json.loads(sys.stdin.buffer.read())
    try:
        answer = {"text": render(job)}
    except RefusedError as error:
        answer = {"error": f"refuses these messages: {error}"}
    except MemoryError:
        answer = {"error": "needs more than 256 MB"}
    except Exception as error:
        answer = {"error": f"{type(error).__name__}: {error}"[:500]}
    sys.stdout.write(json.dumps(answer))
