"""Fuzz one reader in process, guided by coverage, with atheris (`pip install atheris`: Linux, CPython 3.11 and newer at times).

    python scripts/fuzz_guided.py gguf --seconds 600        also: safetensors, config, tokenizer, chat, bench, schema, regex
    python scripts/fuzz_guided.py gguf --input crash-1234   one kept input again, with its traceback

Right is an answer or a BitnetError of one printable line; anything else is a crash, whose input libFuzzer keeps in --out. What it found new
is kept there too, as the corpus of the next run. Counted apart: of `gguf`, inputs that reach the tensor table (others say little).
scripts/fuzz.py runs whole commands over damaged files, blindly; this looks deeper into one reader.
"""

import argparse
import json
import os
import random
import struct
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import atheris

with atheris.instrument_imports(include=["bitnet_cli"]):
    from bitnet_cli.checkpoint import config, safetensors, tokenizer
    from bitnet_cli.commands.bench import saved
    from bitnet_cli.commands.chat import files
    from bitnet_cli.errors import BitnetError
    from bitnet_cli.gguf_file import parse, reader, table
    from bitnet_cli.model import constraint, opening
import make_test_models

from bitnet_cli.embedded import EMBEDDED_MODEL

Test = Callable[[bytes], Any]
reached = {"inputs": 0, "at the tensor table": 0, "accepted": 0, "seconds": 0.0}


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


def target_of(name: str, folder: Path) -> tuple[Test, list[bytes]]:
    """What is tested, and inputs to begin with."""
    model = make_test_models.write_folder(folder / "model", "C_packed", make_test_models.Shape(layers=1))
    if name == "gguf":
        whole = parse._Parser.tensor

        def tensor(self: Any, *arguments: Any) -> Any:
            if not self.rows:
                reached["at the tensor table"] += 1
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
    if name == "bench":
        return of_file(folder, "rows.json", saved.read_rows), [b'[{"test": "tg1", "samples_ts": [1.0], "avg_ts": 1.0}]', b'{"a": 1}\n']
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
    """Mostly behind magic, version and counts; half of the time in the tensor table, so that most inputs reach it."""
    rng = random.Random(seed)
    if rng.random() < 0.1 or len(data) < 64:
        return bytes(atheris.Mutate(data, most))
    start = data.find(struct.pack("<Q", 1) + b"a" + struct.pack("<I", 2), 24) if rng.random() < 0.7 else 24
    start = max(start, 24)
    kept, rest = data[:start], data[start:]
    return kept + bytes(atheris.Mutate(rest, max(most - start, 1)))


def main() -> None:
    """Run libFuzzer, which does not return."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("target", choices=["gguf", "safetensors", "config", "tokenizer", "chat", "bench", "schema", "regex"])
    options.add_argument("--seconds", type=int, default=60)
    options.add_argument("--seed", type=int, default=1)
    options.add_argument("--out", type=Path, default=Path("build/fuzz"))
    options.add_argument("--input", type=Path)
    given = options.parse_args()
    out: Path = given.out / given.target
    (out / "corpus").mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None))
    test, seeds = target_of(given.target, folder)
    for number, seed in enumerate(seeds):
        (out / "corpus" / f"seed{number}").write_bytes(seed)
    begin = time.monotonic()

    def one(data: bytes) -> None:
        reached["inputs"] += 1
        if reached["inputs"] % 2000 == 0:
            reached["seconds"] = round(time.monotonic() - begin, 1)
            (out / "counts.json").write_text(json.dumps(reached))
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
        f"-max_total_time={given.seconds}",
        f"-seed={given.seed}",
        f"-artifact_prefix={out}/",
        "-max_len=4096",
        "-rss_limit_mb=0",
    ]
    more = {"custom_mutator": mutate_gguf} if given.target == "gguf" else {}
    atheris.Setup([*words, str(out / "corpus")], one, **more)
    atheris.Fuzz()


if __name__ == "__main__":
    assert reader and table
    main()
