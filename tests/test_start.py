"""From the first import to the first error: Ctrl-C, warnings of libraries, and a home that is none."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

POSIX = pytest.mark.skipif(os.name != "posix", reason="signals as on POSIX")
INTERRUPTED = """
import os, signal, sys
from bitnet_cli.start import main
module = sys.argv[1]
class Stop:
    @staticmethod
    def find_spec(name, *_):
        if name == module:
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Stop)
sys.argv = ["bitnet", "run", "tiny", "-p", "a", "-n", "1", "-t", "1"]
main()
"""
MODULES = (
    "bitnet_cli.cli", "typer", "bitnet_cli.options.run", "bitnet_cli.commands.run", "numpy", "llvmlite", "tokenizers",
    "bitnet_kernels.team", "numba", "numba._devicearray", "numba.core.types",
)  # fmt: skip


@POSIX
@pytest.mark.parametrize("module", MODULES)
def test_ctrl_c_while_modules_are_imported(module: str, tmp_path: Path) -> None:
    """Also those of Numba, which are imported where nothing is compiled yet."""
    before = signal.getsignal(signal.SIGINT)
    assert before is not signal.SIG_IGN  # as tests/conftest.py sees to
    env = {**os.environ, "BITNET_CACHE_DIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", INTERRUPTED, module], env=env, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout) == (130, "") and "Traceback" not in done.stderr, done.stderr


@pytest.mark.parametrize(("options", "warned"), [([], False), (["-W", "default"], True)])
def test_warnings_of_libraries_are_not_the_users(options: list[str], warned: bool) -> None:
    """An error is one line; who wants to see them asks Python."""
    code = (
        "import sys, warnings; from bitnet_cli import cli; cli._run = lambda: warnings.warn('overflow', RuntimeWarning);"
        "sys.argv = ['bitnet']; cli.main()"
    )
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONWARNINGS"}
    done = subprocess.run([sys.executable, *options, "-c", code], env=kept, capture_output=True, text=True, check=True)
    assert ("overflow" in done.stderr) == warned


@POSIX
@pytest.mark.parametrize("home", ["", "relative"])
def test_a_home_that_is_none(home: str, tmp_path: Path) -> None:
    """`~` would be the root of the file system, or a folder in the current one."""
    code = (
        "import os, sys; from pathlib import Path; from bitnet_cli import cli; cli._run = lambda: print(Path.home());"
        "sys.argv = ['bitnet']; cli.main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | {"HOME": home}, cwd=tmp_path, capture_output=True, text=True, check=True
    )
    pwd = pytest.importorskip("pwd")
    assert done.stdout.strip() == pwd.getpwuid(os.getuid()).pw_dir
