"""Fuzz one reader in process, guided by coverage, with atheris (`pip install atheris`: Linux, CPython 3.11 and newer at times).

    python scripts/fuzz_guided.py gguf --reached 1000000    until so many inputs have reached the tensor table (others say little)
    python scripts/fuzz_guided.py schema --seconds 600      also: safetensors, config, tokenizer, template, chat, bench, regex
    python scripts/fuzz_guided.py gguf --input crash-1234   one kept input again, with its traceback

Right is an answer or a BitnetError of one printable line; anything else is a crash, whose input libFuzzer keeps in --out. What it found new
is kept there too, as the corpus of the next run. At the end: inputs, edges (libFuzzer's `cov`), and when the last new edge was found.
A template is rendered as the child does it, without its limits of time and memory, so the largest numbers are left out; whatever it makes
Python open, start or import is a crash. scripts/fuzz.py runs whole commands over damaged files, blindly; this looks deeper into one reader.
"""

import argparse
import contextlib
import json
import os
import random
import re
import signal
import struct
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import atheris

with atheris.instrument_imports(include=["bitnet_cli", "jinja2"]):
    from bitnet_cli.checkpoint import config, safetensors, tokenizer
    from bitnet_cli.commands.bench import compare, report, saved
    from bitnet_cli.commands.chat import files
    from bitnet_cli.errors import BadFileError, BitnetError
    from bitnet_cli.gguf_file import parse, reader, table
    from bitnet_cli.model import constraint, opening
    from bitnet_cli.text.chat import jinja, jinja_child

    jinja_child.environment()  # imports Jinja, and so with eyes in it
import fuzz
import make_test_models

from bitnet_cli.embedded import EMBEDDED_MODEL

Test = Callable[[bytes], Any]
reached = {"inputs": 0, "at the tensor table": 0, "accepted": 0, "seconds": 0.0}
tables: dict[bytes, int] = {}  # where the tensor table of an input begins
KNOWN_TABLES = 100_000
last: deque[bytes] = deque(maxlen=500)  # inputs that have reached it
SILENCE = 2.0  # seconds that a template may take here; the child has one
FORBIDDEN = ("open", "exec", "import", "subprocess.Popen", "os.system", "os.exec", "os.remove", "os.rename", "socket.connect")
TEMPLATES = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content | trim }}{% if not loop.last %}\n{% endif %}{% endfor %}",
    "{{ bos_token }}{%- set ns = namespace(a=1) -%}{% macro f(x, y='b') %}{{ x ~ y | upper }}{% endmacro %}{{ f(messages[0]['content']) }}",
    "{% if tools %}{{ tools | tojson(indent=2) }}{% else %}{{ raise_exception('none') }}{% endif %}{{ '%s-%d' % ('a', 3) }}",
    "{% generation %}{{ messages[-1].content.split(' ')[0][::-1] }}{% endgeneration %}{{ '{0:>9}{x}'.format('a', x=2) }}{% break %}",
)


def small_gguf() -> bytes:
    """A forged model of 2 KB: every type of value, four tensors of three types."""
    text = lambda s: struct.pack("<Q", len(s)) + s  # noqa: E731
    entries = [text(b"general.architecture") + struct.pack("<I", 8) + text(b"llama")]
    for kind, form in ((0, "B"), (1, "b"), (2, "H"), (3, "h"), (4, "I"), (5, "i"), (6, "f"), (7, "?"), (10, "Q"), (11, "q"), (12, "d")):
        entries.append(text(f"k{kind}".encode()) + struct.pack("<I", kind) + struct.pack("<" + form, 1))
    entries.append(text(b"general.alignment") + struct.pack("<II", 4, 32))
    entries.append(text(b"tokens") + struct.pack("<IIQ", 9, 8, 3) + text(b"a") + text(b"") + text("é".encode()))
    entries.append(text(b"scores") + struct.pack("<IIQ3f", 9, 6, 3, 0.5, 1, 2))
    tensors, at = [], 0
    for name, shape, kind, size in (
        (b"a", (8, 4), 0, 128),
        (b"b.weight", (64,), 1, 128),
        (b"c", (256, 2), 35, 132),
        (b"d", (2, 2, 2), 0, 32),
    ):
        dims = b"".join(struct.pack("<Q", n) for n in shape)
        tensors.append(text(name) + struct.pack("<I", len(shape)) + dims + struct.pack("<IQ", kind, at))
        at += -(-size // 32) * 32
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(entries)) + b"".join(entries) + b"".join(tensors)
    return head.ljust(-(-len(head) // 32) * 32, b"\0") + bytes(at)


def of_file(folder: Path, name: str, read: Callable[[Path], Any]) -> Test:
    """A test of what reads a file, in memory where the temporary folder is."""

    def run(data: bytes) -> None:
        (folder / name).write_bytes(data)
        read(folder / name)

    return run


class TooLongError(BaseException):
    """A template that would be stopped by the child's limit."""


def _stop(number: int, frame: object) -> None:
    raise TooLongError


class Rendering:
    """Renders templates as jinja_child does, and looks whether they reach out of the sandbox."""

    def __init__(self) -> None:
        self.watched = False
        jinja_child.limit = lambda: None
        signal.signal(signal.SIGPROF, _stop)
        sys.addaudithook(self._hook)

    def _hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.watched and event in FORBIDDEN and not (event in ("open", "exec", "import") and self._is_jinja(event, arguments)):
            self.watched = False
            raise AssertionError(f"a template has made Python {event} {arguments!r:.200}")

    @staticmethod
    def _is_jinja(event: str, arguments: tuple[Any, ...]) -> bool:
        """Jinja compiles and runs what it has translated, under the name <template>; imports of what is loaded are nothing new."""
        if event == "exec":
            return getattr(arguments[0], "co_filename", "") in ("<template>", "<unknown>")
        return event == "import" and str(arguments[0]).split(".")[0] in sys.modules

    def __call__(self, data: bytes) -> None:
        source = data.decode("utf-8", "replace")
        if re.search(r"\d{4}|\*\*|0[xob]|\d_\d|e\d", source):
            return  # memory without end
        messages = [{"role": "user", "content": "Why is\x01 it"}, {"role": "assistant", "content": "so?"}]
        job = {"template": source, "messages": messages, "answers": [[1, 2]], "tokens": {"bos_token": "<s>"}, "limit": 100_000}
        job["variables"] = {"tools": None, "documents": None, "add_generation_prompt": True}
        signal.setitimer(signal.ITIMER_PROF, SILENCE)
        try:
            self.watched = True
            text = jinja_child.render(job)
            answer: Any = {"text": re.sub("[\ud800-\udfff]", "\ufffd", text), "runs": jinja_child.origins.runs(text._from)}
        except AssertionError:
            raise
        except (TooLongError, MemoryError):
            return
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}"[:500]}
        finally:
            self.watched = False
            signal.setitimer(signal.ITIMER_PROF, 0)
        assert jinja._is_sound(json.loads(json.dumps(answer))), answer
        if "error" in answer:
            raise BadFileError("f", "chat template", answer["error"])


def use_rows(path: Path) -> None:
    """Whatever is read can be compared and drawn."""
    rows = saved.read_rows(path)
    compare.compare_rows(rows, rows)
    report.report([path, path], path.with_suffix(".html"))


def target_of(name: str, folder: Path) -> tuple[Test, list[bytes]]:
    """What is tested, and inputs to begin with."""
    model = make_test_models.write_folder(folder / "model", "C_packed", make_test_models.Shape(layers=1))
    if name == "gguf":
        whole = parse._Parser.tensor

        def tensor(self: Any, *arguments: Any) -> Any:
            if not self.rows:
                reached["at the tensor table"] += 1
                if len(tables) > KNOWN_TABLES:
                    tables.clear()
                tables[bytes(self.data)] = self.pos
                last.append(bytes(self.data))
            return whole(self, *arguments)

        parse._Parser.tensor = tensor
        return lambda data: parse.parse(data, Path("f")), [small_gguf()]
    if name == "safetensors":
        header = {"__metadata__": {"a": "b"}, "w": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}}
        text = json.dumps(header).encode()
        return of_file(folder, "m.safetensors", safetensors.read_table), [struct.pack("<Q", len(text)) + text + bytes(16)]
    if name == "config":
        return of_file(model, "config.json", lambda path: config.read_config(path.parent)), [(model / "config.json").read_bytes()]
    if name == "tokenizer":
        known = config.read_config(model)
        given = [(model / "tokenizer.json").read_bytes()]
        return of_file(model, "tokenizer.json", lambda path: tokenizer.tokenizer_metadata(path.parent, known)), given
    if name == "template":
        return Rendering(), [source.encode() for source in TEMPLATES]
    if name == "bench":
        made = [sys.executable, "-m", "bitnet_cli", "bench", "-p", "8", "-n", "4", "-r", "2", "-q", "--save", str(folder / "b.json")]
        subprocess.run(made, check=True, stdout=subprocess.DEVNULL)
        return of_file(folder, "rows.json", use_rows), [(folder / "b.json").read_bytes(), b'{"a": 1}\n']
    if name == "chat":
        opened = opening.open_model(EMBEDDED_MODEL, opening.Options(context=16, threads=1))
        chat = {"format": "bitnet-chat", "version": 1, "model": {"name": "a", "vocab_size": 4096}, "template": "t", "sampling": {}}
        chat |= {"first": 0, "messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y", "ids": [1]}]}
        return of_file(folder, "a.json", lambda path: files.load(path, opened.tokenizer)), [json.dumps(chat).encode()]
    if name == "schema":
        given = {"type": "object", "properties": {"a": {"enum": [1, "b", None]}, "c": {"type": "array", "items": {"$ref": "#"}}}}
        return lambda data: constraint.grammar_of(data.decode("utf-8", "replace"), None), [json.dumps(given).encode()]
    return lambda data: constraint.grammar_of(None, data.decode("utf-8", "replace")), [b"(Go|[a-z]{3,5})+\\.?", b"\\p{L}*(?i:x)"]


def mutate_gguf(data: bytes, most: int, seed: int) -> bytes:
    """Mostly in the tensor table and behind it, of an input that has reached it; seldom anywhere."""
    rng = random.Random(seed)
    if rng.random() < 0.05:
        return bytes(atheris.Mutate(data, most))
    if data not in tables and last and rng.random() < 0.9:
        data = rng.choice(last)
    start = tables.get(data, 24) if rng.random() < 0.9 else 24
    kept, rest = data[:start], data[start:]
    return kept + bytes(atheris.Mutate(rest, max(most - start, 1)))


def mutate_json(data: bytes, most: int, seed: int) -> bytes:
    """Half of the time whole values or names, where the input is JSON."""
    rng = random.Random(seed)
    if rng.random() < 0.5:
        with contextlib.suppress(ValueError, RecursionError):
            made = fuzz.changed_json(data, rng)
            if len(made) <= most:
                return made
    return bytes(atheris.Mutate(data, most))


def watch(words: list[str], out: Path) -> int:
    """Run libFuzzer in another process, and say at the end what it has found and when."""
    begin, edges, last, inputs = time.monotonic(), 0, 0.0, ""
    with subprocess.Popen([sys.executable, *words, "--inside"], stderr=subprocess.PIPE, text=True, errors="replace") as process:
        assert process.stderr is not None
        for line in process.stderr:
            found = re.match(r"#(\d+)\t(\w+) .*cov: (\d+)", line)
            if found and int(found[3]) > edges:
                edges, last, inputs = int(found[3]), time.monotonic() - begin, found[1]
            if not found or found[2] in ("INITED", "DONE", "pulse"):
                print(line, end="", flush=True)
    counts = (out / "counts.json").read_text() if (out / "counts.json").exists() else "{}"
    print(f"edges: {edges}; the last new one after {last:.0f} s, with input {inputs}; {counts}")
    return process.returncode


def main() -> None:
    """Run libFuzzer, which does not return."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    targets = ["gguf", "safetensors", "config", "tokenizer", "template", "chat", "bench", "schema", "regex"]
    options.add_argument("target", choices=targets)
    options.add_argument("--seconds", type=int, default=0, help="0: 60, or with --reached until then")
    options.add_argument("--reached", type=int, default=0, help="of gguf: inputs at the tensor table")
    options.add_argument("--seed", type=int, default=1)
    options.add_argument("--out", type=Path, default=Path("build/fuzz"))
    options.add_argument("--input", type=Path)
    options.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    given = options.parse_args()
    out: Path = given.out / given.target
    if not (given.input or given.inside):
        (out / "counts.json").unlink(missing_ok=True)
        sys.exit(watch(sys.argv, out))
    (out / "corpus").mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None))
    test, seeds = target_of(given.target, folder)
    for number, seed in enumerate(seeds):
        (out / "corpus" / f"seed{number}").write_bytes(seed)
    begin = time.monotonic()

    def one(data: bytes) -> None:
        reached["inputs"] += 1
        enough = 0 < given.reached <= reached["at the tensor table"]
        if reached["inputs"] % 2000 == 0 or enough:
            reached["seconds"] = round(time.monotonic() - begin, 1)
            (out / "counts.json").write_text(json.dumps(reached))
        if enough:
            os._exit(0)  # the corpus is on the disk
        try:
            test(data)
            reached["accepted"] += 1
        except BitnetError as error:
            assert str(error).isprintable() and str(error), repr(error)

    if given.input:
        one(given.input.read_bytes())
        return
    words = [
        sys.argv[0],
        f"-max_total_time={given.seconds or (0 if given.reached else 60)}",
        f"-seed={given.seed}",
        f"-artifact_prefix={out}/",
        f"-max_len={max(4096, *(2 * len(seed) for seed in seeds))}",
        "-rss_limit_mb=0",
    ]
    mutators = dict.fromkeys(("config", "tokenizer", "chat", "bench", "schema"), mutate_json) | {"gguf": mutate_gguf}
    more = {"custom_mutator": mutators[given.target]} if given.target in mutators else {}
    atheris.Setup([*words, str(out / "corpus")], one, **more)
    atheris.Fuzz()


if __name__ == "__main__":
    assert reader and table
    main()
