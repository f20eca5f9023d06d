"""Damage files that `bitnet` reads, thousands of times, and see that each is run or refused in one line. POSIX only.

    python scripts/fuzz.py --minutes 5                  everything in turns; prints a line for each new way to fail, and a count at the end
    python scripts/fuzz.py --only gguf folder --seed 7
    python scripts/fuzz.py --every-bit                  each bit before the weights of the smallest model, changed alone
    python scripts/fuzz.py --again build/fuzz/gguf-1234  one kept case again, with its traceback

A case is a small valid file (of every layout and family that scripts/make_test_models.py has) with a few changes: bits, interesting
numbers, cuts, repeats, pieces of other files; in JSON also whole values. It runs in a forked process with a limit of memory and of time.
Right is success or a BitnetError of one line; anything else (another exception, a signal, too slow) is kept under --out.
Exit code 1 if there was any. The same seed gives the same cases.
"""

import argparse
import contextlib
import copy
import hashlib
import json
import os
import random
import resource
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import make_test_models

from bitnet_cli.commands.bench.compare import compare
from bitnet_cli.commands.bench.report import report
from bitnet_cli.commands.chat import files as chat_files
from bitnet_cli.commands.convert import convert
from bitnet_cli.commands.inspect import inspect
from bitnet_cli.commands.quantize import quantize
from bitnet_cli.errors import BitnetError
from bitnet_cli.gguf_file.reader import open_gguf
from bitnet_cli.model import prompt_cache
from bitnet_cli.model.embedding import embed_ids
from bitnet_cli.model.opening import OpenModel, Options, open_model
from bitnet_cli.model.sampling import Sampling
from bitnet_cli.model.sequence import Sequence
from bitnet_cli.text.chat.templates import Message

SECONDS = 20  # of CPU time a case may take; a usual one takes 0.02
MEMORY = 2 << 30  # more than the address space that the process has before a case
ENGINE = Options(context=64, threads=1)
HEADER = 20_000  # most changes are made before this byte: what comes later is weights
NUMBERS = (0, 1, 2, 3, 7, 31, 32, 63, 127, 128, 255, 256, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1, 2**53, 2**63 - 1, 2**63, 2**64 - 1)
VALUES: tuple[Any, ...] = (
    None,
    True,
    -1,
    0,
    1,
    3,
    2**31,
    2**63,
    10**30,
    0.5,
    -0.0,
    1e308,
    1e400,
    float("nan"),
    "",
    "0",
    "\x1b[2J",
    "a" * 9000,
)
VALUES += ("\ud800", [], [[]], {}, {"": None}, ["a", 1])
NESTED = b"[" * 100_000

Check = Callable[[Path], None]


def changed_bytes(data: bytes, others: list[bytes], rng: random.Random) -> bytes:
    """One to four changes."""
    out = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        limit = len(out) if rng.random() < 0.2 else min(len(out), HEADER)
        at = rng.randrange(limit) if limit else 0
        length = min(rng.choice((1, 2, 4, 8, 16, 64, 1000)), len(out) - at)
        match rng.randrange(8):
            case 0 if out:
                out[at] ^= 1 << rng.randrange(8)
            case 1 if out:
                out[at] = rng.randrange(256)
            case 2 | 3:
                form = rng.choice("BHIQ")
                size = struct.calcsize(form)
                out[at : at + size] = struct.pack("<" + form, rng.choice(NUMBERS) % (1 << 8 * size))
            case 4:
                del out[at : at + length]
            case 5:
                out[at:at] = out[at : at + length]
            case 6:
                other = rng.choice(others)
                start = rng.randrange(max(1, len(other)))
                out[at : at + length] = other[start : start + length]
            case 7:
                del out[at:]
    return bytes(out)


def changed_json(data: bytes, rng: random.Random) -> bytes:
    """A value, or the name of one, becomes another; now and then what is no JSON at all."""
    if rng.random() < 0.02:
        return NESTED
    root = {"": json.loads(data)}
    for _ in range(rng.randint(1, 3)):
        where: Any = root
        key: Any = ""
        while isinstance(where[key], (dict, list)) and where[key] and rng.random() < 0.9:
            where = where[key]
            key = rng.choice(list(where)) if isinstance(where, dict) else rng.randrange(len(where))
        if isinstance(where, dict) and where is not root and rng.random() < 0.2:
            del where[key]
        else:
            where[key] = copy.deepcopy(rng.choice(VALUES))
    return json.dumps(root[""]).encode("utf-8", "surrogatepass")


class Target:
    """Files of one sort, and what reads them. A case is a folder; `names` are the files in it that are damaged, one at a time.

    checksum: the last 32 bytes are the SHA-256 of the others, and often made right again.
    """

    def __init__(self, seeds: list[Path], names: tuple[str, ...], check: Check, checksum: bool = False):
        self.seeds, self.names, self.check, self.checksum = seeds, names, check, checksum

    def make(self, folder: Path, rng: random.Random) -> None:
        seed, name = rng.choice(self.seeds), rng.choice(self.names)
        shutil.copytree(seed, folder)
        data = (folder / name).read_bytes()
        as_json = name.endswith(".json") and rng.random() < 0.7
        others = [(other / name).read_bytes() for other in rng.sample(self.seeds, min(2, len(self.seeds)))]
        made = changed_json(data, rng) if as_json else changed_bytes(data, others, rng)
        if self.checksum and rng.random() < 0.8:
            made = made[:-32] + hashlib.sha256(made[:-32]).digest()
        (folder / name).write_bytes(made)


class EveryBit(Target):
    """Each bit before the weights of the smallest of a target's models, one after the other."""

    def __init__(self, whole: Target):
        super().__init__([min(whole.seeds, key=self.header)], whole.names, whole.check)
        self.bits = iter(range(8 * self.header(self.seeds[0])))

    def header(self, seed: Path) -> int:
        with open_gguf(seed / "model.gguf") as file:
            return min(info.offset for info in file.tensors.values())

    def make(self, folder: Path, rng: random.Random) -> None:
        shutil.copytree(self.seeds[0], folder)
        data, bit = bytearray((folder / "model.gguf").read_bytes()), next(self.bits)
        data[bit // 8] ^= 1 << bit % 8
        (folder / "model.gguf").write_bytes(data)


def run_model(path: Path) -> None:
    opened = open_model(path, ENGINE, embeds=True)
    try:
        ids = opened.tokenizer.encode("The <|eot_id|> world's \u00f3\n")[:8] or [0]
        if opened.engine.config.pooling is not None:
            embed_ids(opened.scheduler, [ids], opened.engine.config.pooling, True)
            return
        text = Sequence(opened.engine)
        text.feed_all(ids)
        for token in ids[:3]:
            text.feed([token])
        opened.tokenizer.decode(ids)
    finally:
        opened.scheduler.close()


def check_gguf(folder: Path) -> None:
    """Every command that reads a model; one refusal does not keep the next from trying."""
    path, refused = folder / "model.gguf", []
    commands: tuple[Check, ...] = (
        lambda p: inspect(str(p), full=True, tensors=True, as_json=len(p.name) % 2 == 0, quiet=True),
        run_model,
        lambda p: quantize(p, folder / "out.gguf", "tq2_0", quiet=True),
    )
    for command in commands:
        try:
            command(path)
        except BitnetError as error:
            refused.append(error)
            one_line(error)
    if refused:
        raise refused[0]


def check_folder(folder: Path) -> None:
    convert(folder, folder / "out.gguf", quiet=True)
    run_model(folder / "out.gguf")


def check_bench(folder: Path) -> None:
    path = folder / "bench.json"
    report([path, path], folder / "report.html")
    compare(path, path, "md")


def one_line(error: BitnetError) -> None:
    text = str(error)
    if "\n" in text or not text.isprintable() or len(text) > 2000:
        raise AssertionError(f"a message that is not one line: {text[:300]!r}")


def model_seeds(root: Path) -> tuple[list[Path], list[Path]]:
    """Checkpoint folders of every family and flavour, and models in every layout."""
    folders, models = [], []
    for kind in make_test_models.KINDS:
        for flavour in make_test_models.FLAVOURS if kind == "bitnet" else ("D_dequantised",):
            with contextlib.suppress(BitnetError):  # not every family has every flavour
                folder = make_test_models.write_folder(root / "folder" / f"{kind}-{flavour}", flavour, kind=kind)
                made = root / "gguf" / f"{kind}-{flavour}"
                made.mkdir(parents=True)
                convert(folder, made / "model.gguf", quiet=True)
                folders.append(folder)
                models.append(made)
    for kind in ("tq1_0", "tq2_0", "q2_0", "f16"):
        made = root / "gguf" / kind
        made.mkdir()
        quantize(models[0] / "model.gguf", made / "model.gguf", kind, embedding_type="f16", quiet=True)
        models.append(made)
    return folders, models


def one_file(root: Path, name: str, write: Callable[[Path], object]) -> list[Path]:
    folder = root / name.partition(".")[0]
    folder.mkdir()
    write(folder / name)
    return [folder]


def make_targets(root: Path) -> dict[str, Target]:
    folders, models = model_seeds(root)
    opened = open_model(models[0] / "model.gguf", ENGINE)
    ids = opened.tokenizer.encode("the world in the end")
    Sequence(opened.engine).feed(ids)
    said = [Message("user", "a"), Message("assistant", "b", tuple(opened.tokenizer.encode("b")))]
    chats = one_file(
        root,
        "chat.json",
        lambda p: chat_files.save(p, opened.tokenizer, model="m", template="plain", sampling=Sampling(), messages=said, first=0),
    )
    bench = [sys.executable, "-m", "bitnet_cli", "bench", "-m", str(models[0] / "model.gguf")]
    bench += ["-p", "8", "-n", "4", "-r", "2", "-q", "--save"]
    benches = one_file(root, "bench.json", lambda p: subprocess.run([*bench, str(p)], check=True, stdout=subprocess.DEVNULL))
    caches = one_file(root, "prompt.cache", lambda p: prompt_cache.save(opened, ids, p))
    opened.scheduler.close()

    def with_model(read: Callable[[OpenModel], object]) -> None:
        model = open_model(models[0] / "model.gguf", ENGINE)
        try:
            read(model)
        finally:
            model.scheduler.close()

    return {
        "gguf": Target(models, ("model.gguf",), check_gguf),
        "folder": Target(folders, ("config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors"), check_folder),
        "chat": Target(chats, ("chat.json",), lambda f: with_model(lambda m: chat_files.load(f / "chat.json", m.tokenizer))),
        "cache": Target(caches, ("prompt.cache",), lambda f: with_model(lambda m: prompt_cache.load(m, f / "prompt.cache")), checksum=True),
        "bench": Target(benches, ("bench.json",), check_bench),
    }


def attempt(check: Check, folder: Path, aloud: bool = False) -> str:
    """In a process of its own: "run", "refused", or what went wrong, the same words for the same place. aloud: with its traceback."""
    answer, tell = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(answer)
        resource.setrlimit(resource.RLIMIT_AS, (_address_space() + MEMORY,) * 2)
        resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS + 1))
        for stream in (1,) if aloud else (1, 2):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
        word = "run"
        try:
            check(folder)
        except BitnetError as error:
            word = "refused"
            try:
                one_line(error)
            except AssertionError as bad:
                word = str(bad)
        except BaseException as error:
            traceback.print_exc()
            last = traceback.extract_tb(error.__traceback__)[-1]
            word = f"{type(error).__name__} in {Path(last.filename).name}:{last.name}: {str(error)[:200]}"
        os.write(tell, word.encode("utf-8", "replace"))
        os._exit(0)
    os.close(tell)
    with os.fdopen(answer, "rb") as pipe:
        word = pipe.read().decode()
    _, status = os.waitpid(child, 0)
    return f"signal {signal.Signals(status & 127).name}" if os.WIFSIGNALED(status) else word


def _address_space() -> int:
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * resource.getpagesize()


def fuzz(targets: dict[str, Target], arguments: argparse.Namespace, root: Path) -> Counter[str]:
    found: Counter[str] = Counter()
    done: Counter[str] = Counter()
    end, number = time.monotonic() + 60 * arguments.minutes, 0
    while number < arguments.cases if arguments.cases else time.monotonic() < end:
        number += 1
        name = list(targets)[number % len(targets)]
        folder = root / "case"
        targets[name].make(folder, random.Random(f"{arguments.seed} {number}"))
        word = attempt(targets[name].check, folder)
        done[f"{name} {word if word in ('run', 'refused') else 'WRONG'}"] += 1
        if word not in ("run", "refused"):
            if f"{name}: {word}" not in found:
                kept = arguments.out / f"{name}-{number}"
                shutil.copytree(folder, kept, dirs_exist_ok=True)
                print(f"{kept}: {word}", flush=True)
            found[f"{name}: {word}"] += 1
        shutil.rmtree(folder)
    print(", ".join(f"{what} {count}" for what, count in sorted(done.items())))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--cases", type=int, default=0, help="that many, however long it takes")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--every-bit", action="store_true")
    parser.add_argument("--only", nargs="+", choices=("gguf", "folder", "chat", "cache", "bench"))
    parser.add_argument("--out", type=Path, default=Path("build/fuzz"), help="folder of cases that went wrong")
    parser.add_argument("--again", type=Path, help="a kept case")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        targets = make_targets(Path(scratch))
        for name, target in targets.items():
            for seed in target.seeds:
                case = shutil.copytree(seed, Path(scratch) / "case")
                word = attempt(target.check, case)
                if word != "run" and seed.name != "f16":  # which `run` refuses, and `quantize` reads
                    sys.exit(f"{name}: the sound file {seed.name}: {word}")
                shutil.rmtree(case)
        if arguments.again:
            print(attempt(targets[arguments.again.name.partition("-")[0]].check, arguments.again, aloud=True))
            return
        if arguments.every_bit:
            targets = {"gguf": (every := EveryBit(targets["gguf"]))}
            arguments.cases = 8 * every.header(every.seeds[0])
        if arguments.only:
            targets = {name: targets[name] for name in arguments.only}
        sys.exit(1 if fuzz(targets, arguments, Path(scratch)) else 0)


if __name__ == "__main__":
    main()
