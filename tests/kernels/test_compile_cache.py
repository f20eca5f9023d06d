"""The folder of compiled kernels: private, keyed by all that matters, shared by processes, and never needed."""

import os
import shutil
import stat
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba
import pytest
from bitnet_kernels import compile_cache, isa, native, private
from bitnet_kernels.separate import Code

HERE = Path(__file__).parent
POSIX = pytest.mark.skipif(not hasattr(os, "getuid"), reason="permissions as on POSIX")
COMPILED = pytest.mark.skipif(isa.chosen() == isa.NAIVE, reason="nothing is compiled")


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], Path | None]:
    """`folder` as a new process would call it, with this base folder."""

    def run(base: Path) -> Path | None:
        monkeypatch.setenv("BITNET_CACHE_DIR", str(base))
        return compile_cache.folder.__wrapped__()

    return run


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@POSIX
@pytest.mark.parametrize("umask", [0o022, 0o000, 0o077])
def test_the_folder_is_private(made: Callable[[Path], Path | None], tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        folder = made(tmp_path / "base")
    finally:
        os.umask(before)
    assert folder is not None
    assert folder.parent == tmp_path / "base"
    assert mode(folder) == mode(folder.parent) == 0o700
    assert [path.name for path in folder.iterdir()] == [compile_cache.MARK]


def test_the_name_holds_sources_instruction_set_and_version(made: Callable[[Path], Path | None], tmp_path: Path) -> None:
    folder = made(tmp_path)
    assert folder is not None
    assert folder.name == f"kernels-{compile_cache.source_hash()}-{isa.chosen()}-numba{numba.__version__}"


def test_a_change_in_any_source_file_changes_the_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Also of the kernels that a kernel calls."""
    package = Path(compile_cache.__file__).parent
    shutil.copytree(package, tmp_path / "copy", ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(compile_cache, "__file__", str(tmp_path / "copy" / "compile_cache.py"))
    first = compile_cache.source_hash()
    for name in ("control.py", "simd/vectors.py"):
        path = tmp_path / "copy" / name
        path.write_text(path.read_text(encoding="utf-8") + "\n# changed\n", encoding="utf-8")
        second = compile_cache.source_hash()
        assert second != first
        first = second
    (tmp_path / "copy" / "simd" / "another.py").touch()
    assert compile_cache.source_hash() != first


@POSIX
@pytest.mark.parametrize("permissions", [0o777, 0o720, 0o702, 0o1777])
def test_a_folder_that_others_can_write_is_not_used(made: Callable[[Path], Path | None], tmp_path: Path, permissions: int) -> None:
    """Whoever writes there would run code here: Numba unpickles what it finds."""
    base = tmp_path / "base"
    base.mkdir()
    base.chmod(permissions)
    assert made(base) is None
    assert list(base.iterdir()) == []
    base.chmod(0o700)
    folder = made(base)
    assert folder is not None
    folder.chmod(permissions)
    assert made(base) is None
    assert str(folder) in str(compile_cache.refused.reason)


@POSIX
def test_a_folder_that_others_can_swap_is_not_used(made: Callable[[Path], Path | None], tmp_path: Path) -> None:
    """By the folder above it; and the user learns why."""
    above = tmp_path / "above"
    assert made(above / "base") is not None
    above.chmod(0o777)
    assert made(above / "base") is None
    assert compile_cache.refused.reason == f"others can rename what is in {above}"
    above.chmod(0o1777)
    assert made(above / "base") is not None


@POSIX
@pytest.mark.parametrize("home", ["", "relative"])
def test_a_home_that_is_none_is_asked_of_the_system(
    made: Callable[[Path], Path | None], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, home: str
) -> None:
    pwd = pytest.importorskip("pwd")
    monkeypatch.delenv("BITNET_CACHE_DIR", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", home)
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(pwd, "getpwuid", lambda _: pwd.struct_passwd(("u", "x", 1, 1, "", str(tmp_path), "")))
    assert compile_cache._base() == tmp_path / ".cache" / "bitnet"


@POSIX
def test_a_folder_of_somebody_else_is_not_used(
    made: Callable[[Path], Path | None], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The administrator's is: who owns the machine could put code anywhere."""
    if os.getuid() == 0:
        os.chown(tmp_path, 4321, -1)
    else:
        owner = os.getuid()
        monkeypatch.setattr(os, "getuid", lambda: owner + 1)
    assert made(tmp_path) is None
    assert list(tmp_path.iterdir()) == []


def folders(base: Path, current: str, outside: Path) -> dict[str, Path]:
    """Folders that nobody used for long: ours, with a link to `outside` in it, and others that are named so."""
    name = "kernels-0123456789abcdef-avx2-py311-numba0.63.1"
    found = {
        what: base / f"{name}{i}" for i, what in enumerate(("ours", "unmarked", "other mark", "link as mark", "link", "file", "young"))
    }
    found["other name"], found["current"] = base / "kernels-of-maize", base / current
    for what, path in found.items():
        if what == "file":
            path.write_bytes(compile_cache.MARKED)
        elif what == "link":
            path.symlink_to(base / "elsewhere")
        else:
            (path / "within").mkdir(parents=True)
            (path / "within" / "a").touch()
    (base / "elsewhere").mkdir()
    for path in (*(found[what] for what in ("ours", "other name", "current", "young")), base / "elsewhere"):
        (path / compile_cache.MARK).write_bytes(compile_cache.MARKED)
    (found["other mark"] / compile_cache.MARK).write_bytes(b"")
    (found["link as mark"] / compile_cache.MARK).symlink_to(found["ours"] / compile_cache.MARK)
    (found["ours"] / "link").symlink_to(outside)
    old = time.time() - (compile_cache.UNUSED_DAYS + 1) * 86400
    for what, path in found.items():
        if what not in ("young", "link"):
            os.utime(path, (old, old))
    os.utime(base / "elsewhere", (old, old))
    return found


@POSIX
def test_only_folders_that_were_made_here_are_removed(made: Callable[[Path], Path | None], tmp_path: Path) -> None:
    base = tmp_path / "base"
    current = made(base)
    assert current is not None
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "a").touch()
    found = folders(base, current.name, outside)
    assert made(base) == current
    assert [what for what, path in found.items() if not os.path.lexists(path)] == ["ours"]
    assert (outside / "a").exists() and (base / "elsewhere" / compile_cache.MARK).exists()
    assert made(base) == current and current.stat().st_mtime > time.time() - 100


def test_a_folder_that_was_there_before_is_not_marked(made: Callable[[Path], Path | None], tmp_path: Path) -> None:
    current = made(tmp_path / "one")
    assert current is not None
    (tmp_path / "two" / current.name).mkdir(parents=True, mode=0o700)
    assert made(tmp_path / "two") == tmp_path / "two" / current.name
    assert list((tmp_path / "two" / current.name).iterdir()) == []


def test_without_a_home_there_is_no_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(private, "home", lambda: None)
    for name in ("BITNET_CACHE_DIR", "XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    assert compile_cache.folder.__wrapped__() is None


def test_a_relative_xdg_folder_is_ignored(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As the XDG specification asks; it would be another one in every working directory."""
    monkeypatch.delenv("BITNET_CACHE_DIR", raising=False)
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(private, "home", lambda: tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert compile_cache._base() == tmp_path / ".cache" / "bitnet"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert compile_cache._base() == tmp_path / "xdg" / "bitnet"


@COMPILED
@pytest.mark.parametrize("what", ["file", "home"])
def test_kernels_work_without_a_folder(run_script: Callable[..., Any], tmp_path: Path, what: str) -> None:
    """A file stands where the folder, or the home, should be, so that not even an administrator can write there."""
    file = tmp_path / "file"
    file.touch()
    if what == "file":
        changes = {"BITNET_CACHE_DIR": str(file)}
    else:
        gone = str(file / "gone")
        changes = {"BITNET_CACHE_DIR": None, "XDG_CACHE_HOME": None, "HOME": gone, "USERPROFILE": gone, "LOCALAPPDATA": gone}
    for _ in range(2):
        result = run_script("cache_state.py", "barrier", **changes)
        assert (result["right"], result["folder"], result["compiled"]) == (True, None, 1)


@COMPILED
def test_the_second_process_compiles_nothing(run_script: Callable[..., Any]) -> None:
    """Every kernel that Python calls comes from the folder, whole with all that it calls, as machine code: Numba is not imported."""
    first = run_script("cache_state.py", "team")
    second = run_script("cache_state.py", "team")
    assert first["right"] is second["right"] is True
    assert second["folder"] is not None
    assert (second["numba"], second["compiled"]) == (False, 0)
    assert {name.split("-")[0] for name in second["machine code"]} >= {"step.serve", "barrier.announce"}


def after_the_first(run_script: Callable[..., Any], tmp_path: Path) -> tuple[dict[str, str], list[Path]]:
    """A folder that one process has filled with what a team needs: the setting for others, and the files with machine code."""
    shared = compile_cache.folder()
    assert shared is not None
    run_script("cache_state.py", "team")
    shutil.copytree(shared, tmp_path / "base" / shared.name)
    (tmp_path / "base").chmod(0o700)
    return {"BITNET_CACHE_DIR": str(tmp_path / "base")}, sorted((tmp_path / "base").rglob("*.code"))


@COMPILED
def test_another_cache_compiles_attention_and_the_root_again(run_script: Callable[..., Any], tmp_path: Path) -> None:
    """All else is kept for whoever calls it with the same types."""
    base, before = after_the_first(run_script, tmp_path)
    other = run_script("cache_state.py", "team", "q8", **base)
    new = {name.split("-")[0] for name in set(other["machine code"]) - {path.name for path in before}}
    assert other["right"] is True and new <= {"attention.attend", "step.serve"} and other["compiled"] == len(new)


@COMPILED
def test_damaged_machine_code_is_not_run(run_script: Callable[..., Any], tmp_path: Path) -> None:
    """As after a full disk, or a computer that stopped while it was written. It is compiled again; what is whole is not."""
    base, files = after_the_first(run_script, tmp_path)
    used = run_script("cache_state.py", "team", **base)["linked"]
    files = [path for path in files if path.stem in used]
    root, part = (next(path for path in files if path.name.startswith(name)) for name in ("barrier.announce", "logits.wanted_logits"))
    data = root.read_bytes()
    root.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    part.unlink()
    again = run_script("cache_state.py", "team", **base)
    assert (again["right"], again["compiled"]) == (True, 3)  # both, and the root that needs the part
    assert run_script("cache_state.py", "team", **base)["compiled"] == 0  # what was damaged has been replaced


@pytest.mark.parametrize("damage", [slice(-100), slice(40), slice(0), slice(1, None)])
def test_damaged_files_are_told_from_whole_ones(damage: slice) -> None:
    file = native.encoded(Code("a", ("b", "c"), bytes(range(256))))
    assert native.decoded(file) == ("a", ("b", "c"), bytes(range(256)))
    with pytest.raises(ValueError, match="damaged"):
        native.decoded(file[damage])
    for at in range(len(file)):
        with pytest.raises(ValueError, match="damaged"):
            native.decoded(file[:at] + bytes([file[at] ^ 1]) + file[at + 1 :])


@COMPILED
def test_machine_code_that_cannot_be_linked_is_not_kept(tmp_path: Path) -> None:
    """As with a function that this system does not have: LLVM would end the process, so another one tries."""
    native.keep(tmp_path, [Code("a", (), b"no object file")])
    assert [path.name for path in tmp_path.iterdir()] == ["a.failed"]


@COMPILED
def test_code_whose_parts_are_not_kept_is_not_kept(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="missing"):
        native.keep(tmp_path, [Code("a", ("b",), b"no object file")])
    assert list(tmp_path.iterdir()) == []


@COMPILED
def test_two_processes_may_fill_an_empty_folder_at_once(run_script: Callable[..., Any], tmp_path: Path) -> None:
    command = [sys.executable, str(HERE / "cache_state.py"), "barrier"]
    environment = {**os.environ, "BITNET_CACHE_DIR": str(tmp_path / "base"), "BITNET_ISA": ""}
    both = [subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    for process in both:
        output, errors = process.communicate(timeout=240)
        assert (process.returncode, errors) == (0, "")
        assert '"right": true' in output
    third = run_script("cache_state.py", "barrier", BITNET_CACHE_DIR=str(tmp_path / "base"))
    assert (third["right"], third["compiled"]) == (True, 0)


@pytest.mark.skipif(not hasattr(os, "getuid") or os.getuid() != 0, reason="only root can be somebody else")
def test_kernels_that_root_keeps_for_all_users() -> None:
    """As in a container: another user reads them, adds none, and needs nothing that can be written."""
    kept = compile_cache.folder()
    assert kept is not None
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        copy = Path(name) / kept.name
        copy.mkdir(mode=0o755)
        (copy / "x.code").touch(0o644)
        assert _found_as_somebody_else(name) == str(copy)
        copy.chmod(0o777)
        assert _found_as_somebody_else(name) == "None"


def _found_as_somebody_else(base: str) -> str:
    """In a fork that knows what the folder's name is made of: sources which that user may read cannot be had everywhere."""
    ends, hashed, numba = os.pipe(), compile_cache.source_hash(), compile_cache._numba_version()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # other threads are there; the child uses none
        child = os.fork()
    if not child:
        try:
            compile_cache.source_hash, compile_cache._numba_version = lambda: hashed, lambda: numba
            os.setuid(12345)
            os.environ["BITNET_CACHE_DIR"] = base
            compile_cache.folder.cache_clear()
            os.write(ends[1], str(compile_cache.folder()).encode())
        except BaseException as error:
            os.write(ends[1], repr(error).encode())
        finally:
            os._exit(0)
    os.close(ends[1])
    with os.fdopen(ends[0]) as said:
        text = said.read()
    os.waitpid(child, 0)
    return text
