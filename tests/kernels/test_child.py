"""Processes that the packages start: they find their modules however the packages are installed, and nothing in the current folder."""

import ast
import json
import os
import shutil
import site
import subprocess
import sys
import sysconfig
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import bitnet_kernels
import pytest
from bitnet_kernels import child, isa, native
from bitnet_kernels.separate import Code

import bitnet_cli

SCRIPT = Path(__file__).with_name("child_case.py")
POSIX = pytest.mark.skipif(os.name != "posix", reason="links and interpreters as on POSIX")
# Names that a child, or Python itself while it starts, may ask for.
NAMES = (
    "hashlib", "json", "re", "os", "site", "encodings", "sitecustomize", "usercustomize", "importlib", "ctypes", "subprocess", "datetime",
    "numpy", "numba", "llvmlite", "jinja2", "markupsafe", "bitnet_kernels", "bitnet_cli", "jinja_child", "resource", "native",
)  # fmt: skip
BASE = str(Path(sys.executable).resolve())  # not the environment's: `sys._base_executable` is that before 3.11
TREES = {"bitnet_cli": Path(bitnet_cli.__file__).parent, "bitnet_kernels": Path(bitnet_kernels.__file__).parent}


@pytest.fixture
def hostile(tmp_path: Path) -> Path:
    """A folder full of modules that leave the file `ran` behind when they are imported."""
    folder = tmp_path / "hostile"
    for name in NAMES:
        text = f"open({str(folder / 'ran')!r}, 'a').write({name!r} + chr(10))\n"
        (folder / name).mkdir(parents=True)
        (folder / name / "__init__.py").write_text(text)
        (folder / f"{name}.py").write_text(text)
    (folder / "a.pth").write_text(f"import sys; open({str(folder / 'ran')!r}, 'a')\n")
    return folder


def copied(folder: Path) -> Path:
    """The two packages, as they are installed, in a folder; without the models."""
    for name, tree in TREES.items():
        shutil.copytree(tree, folder / name, ignore=shutil.ignore_patterns("__pycache__", "*.gguf"))
    return folder


def dependencies() -> str:
    return sysconfig.get_path("purelib")


def checkout(_: Path) -> tuple[list[str], dict[str, str]]:
    """As the tests run: an editable install, whose packages a finder knows, or what else there is."""
    return [sys.executable, str(SCRIPT)], {}


def by_path(tmp_path: Path) -> tuple[list[str], dict[str, str]]:
    folder = copied(tmp_path / "lib")
    return [BASE, str(SCRIPT)], {"PYTHONPATH": os.pathsep.join([str(folder), dependencies()])}


def of_the_user(tmp_path: Path) -> tuple[list[str], dict[str, str]]:
    folder = copied(Path(site.getusersitepackages().replace(site.getuserbase(), str(tmp_path / "user"))))
    (folder / "deps.pth").write_text(dependencies() + "\n")
    return [BASE, str(SCRIPT)], {"PYTHONUSERBASE": str(tmp_path / "user")}


def environment(tmp_path: Path) -> tuple[list[str], dict[str, str]]:
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "venv")], check=True)
    folder = copied(next((tmp_path / "venv").glob("lib/python*/site-packages")))
    (folder / "deps.pth").write_text(dependencies() + "\n")
    return [str(tmp_path / "venv" / "bin" / "python"), str(SCRIPT)], {}


def zipped(tmp_path: Path) -> tuple[list[str], dict[str, str]]:
    folder = copied(tmp_path / "app")
    with zipfile.ZipFile(tmp_path / "app.pyz", "w") as archive:
        archive.write(SCRIPT, "__main__.py")
        for path in folder.rglob("*.py"):
            archive.write(path, path.relative_to(folder))
    return [BASE, str(tmp_path / "app.pyz")], {"PYTHONPATH": dependencies()}


def moved_home(tmp_path: Path) -> tuple[list[str], dict[str, str]]:
    """A Python that needs PYTHONHOME to find its library would not start with -I."""
    words, variables = by_path(tmp_path)
    return words, variables | {"PYTHONHOME": f"{sys.base_prefix}{os.pathsep}{sys.base_exec_prefix}"}


def run(words: list[str], variables: dict[str, str], folder: Path, *more: str, cwd: Path) -> dict[str, Any]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    folder.mkdir()
    done = subprocess.run(
        [*words, str(folder), *more], cwd=cwd, env=kept | variables, capture_output=True, text=True, timeout=120, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    result: dict[str, Any] = json.loads(done.stdout)
    return result


@POSIX
@pytest.mark.parametrize("install", [checkout, by_path, of_the_user, environment, zipped, moved_home])
def test_every_kind_of_install_starts_children_and_none_imports_from_the_current_folder(
    install: Callable[[Path], tuple[list[str], dict[str, str]]], hostile: Path, tmp_path: Path
) -> None:
    words, variables = install(tmp_path)
    result = run(words, variables, tmp_path / "out", cwd=hostile)
    assert (result["files"], result["rendered"]) == (["a.code"], "hello")
    assert install is checkout or result["from"].startswith(str(tmp_path))
    assert not (hostile / "ran").exists(), (hostile / "ran").read_text()


@POSIX
@pytest.mark.parametrize(
    "variable", ["PYTHONPATH", "PYTHONSTARTUP", "PYTHONINSPECT", "PYTHONPLATLIBDIR", "PYTHONUSERBASE", "PYTHONWARNINGS"]
)
def test_children_get_none_of_pythons_variables(variable: str, hostile: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Set in this process only, after its own start."""
    monkeypatch.setenv(variable, str(hostile))
    monkeypatch.chdir(hostile)
    code = "import json, os, sys\ndef main(): print(json.dumps([sys.path, sorted(os.environ), os.getcwd()]))\n"
    (tmp_path / "shown.py").write_text(code)
    with child.start("shown", "main", (), folder=str(tmp_path)) as process:
        output, _ = process.communicate(timeout=60)
    path, names, cwd = json.loads(output)
    assert [entry for entry in path if "hostile" in entry or "site-packages" in entry or not entry] == []
    assert [name for name in names if name.startswith("PYTHON")] == []
    assert Path(cwd) != hostile and not (hostile / "ran").exists()


@POSIX
@pytest.mark.parametrize("first", ["", "absolute"])
def test_a_current_folder_on_the_path_of_this_process_is_not_looked_into(
    first: str, hostile: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As `python -c` and `python -m` put it there. Jinja is imported by a child only, so this process has not found it elsewhere."""
    monkeypatch.chdir(hostile)
    monkeypatch.delitem(sys.modules, "jinja2", raising=False)
    monkeypatch.setattr(sys, "path", [first and str(hostile), *sys.path])
    places = " ".join(child.command("native", "trial", ("jinja2", "bitnet_kernels"), folder=str(tmp_path)))
    assert "hostile" not in places.replace(str(tmp_path), "")


@POSIX
def test_a_frozen_program_is_not_started_again(hostile: Path, tmp_path: Path) -> None:
    """Where the names in an object file can be told, as on Linux, code is kept all the same; a template in Jinja is refused."""
    program = tmp_path / "program"
    program.write_text(f"#!/bin/sh\ntouch {tmp_path / 'started'}\n")
    program.chmod(0o755)
    result = run(*checkout(tmp_path), tmp_path / "out", str(program), cwd=hostile)
    assert result["files"] == (["a.code"] if sys.platform == "linux" else []) and "process of its own" in result["rendered"]
    assert not (tmp_path / "started").exists() and not (hostile / "ran").exists()


@pytest.mark.parametrize("executable", ["", "python", "/nowhere/python3", "/bin/sh"])
def test_what_is_no_python_is_not_started(executable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As where a Python is part of another program."""
    monkeypatch.setattr(sys, "executable", executable)
    assert child.interpreter() is None
    with pytest.raises(child.NoChildError):
        child.start("json", "loads", ())


def test_a_module_that_is_not_there() -> None:
    with pytest.raises(child.NoChildError, match="no_such_module"):
        child.command("json", "loads", ("no_such_module",))


def test_nothing_else_starts_a_process(python_files: dict[Path, ast.Module]) -> None:
    """One function does; the system is asked for the CPU's name by a program of its own, by its whole path; and a command that starts
    again is what was started before, word for word.
    """
    allowed = {Path("kernels/child.py"), Path("kernels/native.py"), Path("bitnet_cli/machine/cpu.py"), Path("bitnet_cli/commands/again.py")}
    starters = {"subprocess", "multiprocessing", "ProcessPoolExecutor", "pty", "popen", "system", "posix_spawn", "startfile", "fork"}
    found = set()
    for path, tree in python_files.items():
        if path.parts[0] not in ("kernels", "bitnet_cli"):
            continue
        for node in ast.walk(tree):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or "", *(alias.name for alias in node.names)] if isinstance(node, ast.ImportFrom) else []
            on_os = isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "os"
            names += [node.attr] if on_os and isinstance(node, ast.Attribute) else []
            if any(name.split(".")[0] in starters or name.startswith(("exec", "spawn")) for name in names):
                found.add(path)
    assert found == allowed


@POSIX
def test_the_command_as_a_module_forgets_the_current_folder(tmp_path: Path) -> None:
    """`python -m` puts it before all others; `bitnet`, a script elsewhere, does not."""
    for name in ("typer", "numpy", "numba", "llvmlite", "rich", "jinja2", "gguf"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    done = subprocess.run([sys.executable, "-m", "bitnet_cli", "--version"], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("bitnet ") and not (tmp_path / "ran").exists()


@pytest.fixture
def trials(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[bool], int]:
    """trials(good): one process's attempt to keep code, in which the trial ends well or not. How many trials there were."""
    count = 0
    good = False

    def links(_: object) -> bool:
        nonlocal count
        count += 1
        return good

    def attempt(ends_well: bool) -> int:
        nonlocal count, good
        count, good = 0, ends_well
        native.keep(tmp_path, [Code("a", (), b"code")])
        return count

    monkeypatch.setattr(native, "_links", links)
    return attempt


def test_a_failed_trial_is_tried_again(trials: Callable[[bool], int], tmp_path: Path) -> None:
    """Soon at first, then once a day; and what was kept in the end has nothing beside it."""
    assert [trials(False) for _ in range(native.TRIALS + 3)] == [1] * (native.TRIALS + 1) + [0, 0]
    assert [path.name for path in tmp_path.iterdir()] == ["a.failed"]
    failed = tmp_path / "a.failed"
    for age, tried in ((native.LATER - 100, 0), (native.LATER + 100, 1)):
        moment = failed.stat().st_mtime - age
        os.utime(failed, (moment, moment))
        assert trials(False) == tried
    assert trials(True) == 0
    os.utime(failed, (0, 0))
    assert trials(True) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["a.code"]


@pytest.mark.parametrize("text", [b"", b"x", b"\xff", b"-1"])
def test_a_damaged_count_of_trials(trials: Callable[[bool], int], tmp_path: Path, text: bytes) -> None:
    (tmp_path / "a.failed").write_bytes(text)
    assert trials(True) == 1


def test_a_clock_that_was_wrong(trials: Callable[[bool], int], tmp_path: Path) -> None:
    """A trial of the future does not keep others away for years."""
    (tmp_path / "a.failed").write_text("9")
    os.utime(tmp_path / "a.failed", (4e9, 4e9))
    assert trials(True) == 1


def test_a_trial_that_takes_too_long_has_failed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    started = []

    def sleeper(*_: object) -> "subprocess.Popen[bytes]":
        started.append(subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], stdin=subprocess.PIPE))
        return started[0]

    monkeypatch.setattr(child, "start", sleeper)
    monkeypatch.setattr(native, "_TRIAL_SECONDS", 0.1)
    native.keep(tmp_path, [Code("a", (), b"code")])
    assert [path.name for path in tmp_path.iterdir()] == ["a.failed"]
    assert started[0].returncode is not None


@pytest.mark.skipif(isa.chosen() == isa.NAIVE, reason="nothing is compiled")
def test_code_is_kept_by_a_later_process_where_the_first_could_not(run_script: Callable[..., Any], tmp_path: Path) -> None:
    """It is compiled again, and tried."""
    base = {"BITNET_CACHE_DIR": str(tmp_path / "base")}
    first = run_script("cache_state.py", "barrier", "alone", **base)
    assert (first["right"], first["numba"], first["machine code"]) == (True, True, [])
    second = run_script("cache_state.py", "barrier", **base)
    assert (second["right"], second["numba"], second["compiled"]) == (True, True, 1)
    assert [name.split("-")[0] for name in second["machine code"]] == ["barrier.announce"]
    third = run_script("cache_state.py", "barrier", **base)
    assert (third["right"], third["numba"]) == (True, False)
