"""`bitnet compile`: machine code that is there before the first run, for any set, read by anybody; and what is refused."""

import os
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from bitnet_kernels import compile_cache, isa, kv_cache, native
from bitnet_kernels.team import compile_for_several

from bitnet_cli.commands import ahead
from bitnet_cli.embedded import EMBEDDED
from bitnet_cli.gguf_file.reader import open_gguf
from bitnet_cli.gguf_file.types import TensorType
from bitnet_cli.model.engine import Engine

from ..command import bitnet
from ..model.builder import Sizes, random_model, write_model
from ..model.group_models import write_grouped
from ..model.test_folds import ALL, write
from ..model.test_qwen2 import with_biases

COMPILED = pytest.mark.skipif(isa.chosen() == isa.NAIVE, reason="nothing is compiled")
SETS = {"x86_64": ["amx", "avx512vnni", "avxvnni", "avx2", "portable"], "aarch64": ["dotprod", "neon", "portable"]}


@pytest.mark.parametrize("machine", SETS)
def test_sets_of_a_platform(monkeypatch: pytest.MonkeyPatch, machine: str) -> None:
    monkeypatch.setattr("platform.machine", lambda: machine)
    assert isa.of_this_platform() == SETS[machine]


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["--isa", "sse9"], 2, "sse9: no instruction set that is compiled for"),
        (["--isa", "avx2,naive"], 2, "naive: no instruction set"),
        (["--all", "--isa", "avx2"], 2, "one or the other"),
        (["no-such-model"], 2, "no-such-model"),
        (["--into", "FILE"], 1, "FILE/kernels-"),
    ],
)
def test_what_cannot_be_compiled(tmp_path: Path, words: list[str], code: int, message: str) -> None:
    (tmp_path / "FILE").touch()
    done = bitnet("compile", "-q", *(tmp_path / "FILE" if word == "FILE" else word for word in words))
    assert (done.returncode, done.stdout) == (code, "")
    assert message in done.stderr and len(done.stderr.strip().splitlines()) == 1


@COMPILED
def test_what_published_models_need_is_all_that_models_ask_for(tmp_path: Path) -> None:
    """Every kind of model that tests have, whatever its scales, head, biases, folds and cache."""
    known = set(ahead.of_published_models())
    assert len({asked.layout for asked in known if asked.name == "serve"}) == len(ahead.KINDS) * len(kv_cache.CACHE_TYPES)
    biases = with_biases(random_model(Sizes(vocab=320), seed=4, activation="silu"))
    write_model(tmp_path / "qwen2.gguf", biases, arch="qwen2")
    write_grouped(tmp_path / "dense head.gguf", TensorType.PQ2_0)
    write_grouped(tmp_path / "bonsai.gguf", TensorType.PQ2_0, embedding=TensorType.PQ2_0, tied=False)
    write(tmp_path / "folded.gguf", 64, ALL, explicit=True, embedding=TensorType.PQ2_0)
    for path in (*(model.path for model in EMBEDDED.values()), *tmp_path.glob("*.gguf")):
        for kind in kv_cache.CACHE_TYPES:
            assert set(ahead.of_model(path, kind)) <= known, path.name


@COMPILED
def test_a_process_of_its_own_finds_out_what_is_needed(tmp_path: Path) -> None:
    """It has no packages but those that it is given."""
    progress = ahead.compile_set(isa.chosen(), [], tmp_path)
    try:
        assert next(progress) == (0, len(set(ahead.of_published_models())), 0)
    finally:
        progress.close()


def test_nothing_is_compiled_or_run_while_it_is_noted() -> None:
    with native.noted() as asked, open_gguf(EMBEDDED["tiny"].path) as file:
        engine = Engine(file)
        engine.compile()
    assert isa.chosen() == isa.NAIVE or ("step", "serve") in {(each.module, each.name) for each in asked}


def run(*words: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "bitnet_cli", *words]
    return subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, **environment}, timeout=600)


@pytest.mark.slow
@COMPILED
def test_who_finds_machine_code_compiles_nothing(tmp_path: Path) -> None:
    """For a set that any CPU of this platform runs, from a folder for all users, also with other words about this CPU; once is enough."""
    into, own = tmp_path / "all", tmp_path / "own"
    options = "--isa", "portable", "--into", str(into)
    before = os.umask(0o077)
    try:
        first = run("compile", "tiny", *options, NUMBA_CPU_NAME="nehalem", NUMBA_CPU_FEATURES="")
    finally:
        os.umask(before)
    assert (first.returncode, first.stdout) == (0, "") and " parts in " in first.stderr, first.stderr
    again = run("compile", "tiny", *options)
    assert again.stderr == "bitnet: note: portable: all is there already\n"
    (folder,) = into.iterdir()
    for path in (folder, *folder.iterdir()):
        assert stat.S_IMODE(path.stat().st_mode) == (0o755 if path.is_dir() else 0o644)
    shared = {"BITNET_ISA": "portable", "BITNET_SHARED_CACHE_DIR": str(into), "BITNET_CACHE_DIR": str(own)}
    done = run("run", "tiny", "-p", "Once upon a time", "-n", "8", "--temp", "0", **shared)
    assert (done.returncode, "compil" in done.stderr) == (0, False), done.stderr
    assert list(own.rglob("*.code")) == []
    folder.chmod(0o777)  # now anybody could put code there: it is not looked into
    state = "from bitnet_kernels import compile_cache; print(len(compile_cache.folders()))"
    for mode, count in ((0o777, "1"), (0o755, "2")):
        folder.chmod(mode)
        told = subprocess.run([sys.executable, "-c", state], capture_output=True, text=True, check=True, env={**os.environ, **shared})
        assert told.stdout.strip() == count


@COMPILED
def test_what_the_user_has_is_copied(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with native.noted() as asked:
        compile_for_several()
    first, second = (compile_cache.made_within(tmp_path / name) for name in ("first", "second"))
    monkeypatch.setattr(compile_cache, "folder", lambda: first)
    assert [native.compile_ahead(asked[0], first) for _ in range(2)] == [1, 0]
    monkeypatch.setattr(native, "_built", lambda *_: pytest.fail("compiled again"))
    assert [native.compile_ahead(asked[0], second) for _ in range(2)] == [1, 0]
    assert sorted(path.name for path in first.iterdir()) == sorted(path.name for path in second.iterdir())


def test_folders_are_looked_into_in_this_order(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The user's own, what BITNET_SHARED_CACHE_DIR names, what a wheel has brought; there code of another Numba counts too."""
    name = f"kernels-{compile_cache.source_hash()}-{isa.chosen()}-numba"
    for base in ("own", "shared", "brought"):
        (tmp_path / base / f"{name}0.1").mkdir(parents=True, mode=0o755)
    (tmp_path / "own").chmod(0o700)
    monkeypatch.setenv("BITNET_CACHE_DIR", str(tmp_path / "own"))
    monkeypatch.setenv("BITNET_SHARED_CACHE_DIR", str(tmp_path / "shared"))
    monkeypatch.setattr(compile_cache, "BROUGHT", tmp_path / "brought")
    compile_cache.folder.cache_clear()
    try:
        found: Any = compile_cache.folders.__wrapped__()
    finally:
        compile_cache.folder.cache_clear()
    assert [path.parent.name for path in found] == ["own", "shared", "brought"]
    assert [path.name.endswith("numba0.1") for path in found] == [False, True, True]


def test_a_folder_with_code_that_is_damaged_is_passed_over(tmp_path: Path) -> None:
    from bitnet_kernels.separate import Code

    for name, data in (("first", b"damaged"), ("second", native.encoded(Code("a", (), b"object")))):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.code").write_bytes(data)
    read: Callable[..., Code] = native._read
    assert read([tmp_path / "first", tmp_path / "second"], "a").object == b"object"
    with pytest.raises(ValueError, match="damaged"):
        read([tmp_path / "first"], "a")
    with pytest.raises(FileNotFoundError):
        read([tmp_path / "third"], "a")
