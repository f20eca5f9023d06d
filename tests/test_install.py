"""docs/install.md: the Dockerfile, read by hadolint and followed step by step in a chroot, and the unit of systemd, read by systemd.

There is no Docker in CI, so a root of this machine's own programs stands in for the base image; the Python in it is the one that runs this.
"""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from bitnet_kernels import isa

ROOT = Path(__file__).resolve().parent.parent
TOOLS = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
BASE = "/image"  # where the stand-in has its Python


def instructions() -> list[tuple[str, str]]:
    """Of the Dockerfile, in order."""
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8").replace("\\\n", " ")
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#")]
    return [(line.partition(" ")[0], line.partition(" ")[2].strip()) for line in lines]


def test_hadolint() -> None:
    program = shutil.which("hadolint", path=TOOLS)
    if program is None:
        pytest.skip("no hadolint here (extra `clients`)")
    done = subprocess.run([program, "--no-color", ROOT / "Dockerfile"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_the_unit_of_systemd(tmp_path: Path) -> None:
    """With the path of a program that is there, and a model; what it starts is a command line that we have."""
    text = (ROOT / "docs" / "bitnet.service").read_text(encoding="utf-8")
    (line,) = re.findall(r"^ExecStart=(.+)$", text, re.M)
    program, *words = shlex.split(line)
    assert program == "/usr/local/bin/bitnet" and words[0] == "serve"
    known = subprocess.run([sys.executable, "-m", "bitnet_cli", "serve", "-h"], capture_output=True, text=True, check=True).stdout
    assert all(word in known for word in words if word.startswith("--"))
    if shutil.which("systemd-analyze") is None:
        pytest.skip("no systemd-analyze here")
    unit = tmp_path / "bitnet.service"
    unit.write_text(text.replace(program, str(Path(sys.executable).parent / "bitnet")))
    done = subprocess.run(["systemd-analyze", "verify", unit], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


class Image:
    """A root folder in which the Dockerfile's steps were done, in a mount namespace that each command makes anew."""

    def __init__(self, root: Path):
        self.root, self.folder, self.user = root, "/", "0:0"
        self.environment = {"PATH": f"{BASE}/bin:/usr/local/bin:/usr/bin:/bin", "LANG": "C.UTF-8"}
        self.entry: list[str] = []
        self.default: list[str] = []
        root.mkdir(mode=0o755)
        for name in ("proc", "dev", "tmp", "src", "var/cache", *(path.lstrip("/") for path in self._shown())):
            (root / name).mkdir(parents=True, exist_ok=True)
        for link in ("bin", "sbin", "lib", "lib64"):
            if (Path("/") / link).is_symlink() and not (root / link).is_symlink():
                (root / link).symlink_to(Path("/") / link if not Path(f"/{link}").is_symlink() else Path(f"/{link}").readlink())

    @staticmethod
    def _shown() -> list[str]:
        """Folders of this machine, read-only: programs, this Python, and what pip is told."""
        wanted = ["/usr", "/etc", "/opt", "/lib", "/lib64", "/bin", sys.base_prefix]
        return [path for path in wanted if Path(path).is_dir() and not Path(path).is_symlink()]

    def run(self, command: str, user: str = "0:0", *, read_only: bool = False, home: str = "/root") -> "subprocess.CompletedProcess[str]":
        """A shell command in it, as a user. read_only: nothing can be written but /tmp's and /dev's."""
        root = shlex.quote(str(self.root))
        lines = [f"mount --bind {root} {root}"]
        lines += [f"mount --bind {path} {root}{path} && mount -o remount,bind,ro {root}{path}" for path in self._shown()]
        lines += [f"mount --rbind /dev {root}/dev", f"mount -t proc proc {root}/proc"]
        lines += [f"mount -o remount,bind,ro {root}"] if read_only else []
        words = [f"{name}={value}" for name, value in self.environment.items()] + [f"HOME={home}", *_pip()]
        inside = f"cd {self.folder} && {command}"
        lines += [f"exec chroot --userspec={user} {root} env -i {shlex.join(words)} sh -c {shlex.quote(inside)}"]
        script = "set -e\n" + "\n".join(lines)
        alone = ["unshare", "--mount", "--pid", "--fork", "--propagation", "private", "sh", "-c", script]
        return subprocess.run(alone, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL, timeout=900)

    def step(self, name: str, text: str) -> None:
        """One instruction."""
        if name == "FROM":
            self._made(f"{shlex.quote(os.path.realpath(sys.executable))} -m venv {BASE}")
        elif name == "WORKDIR":
            self.folder = text
            (self.root / text.lstrip("/")).mkdir(parents=True, exist_ok=True)
        elif name == "COPY":
            *sources, target = text.split()
            for source in sources:
                self._copy(ROOT / source, self.root / self.folder.lstrip("/") / target, len(sources) > 1 or target.endswith("/"))
        elif name == "ENV":
            self.environment |= dict(word.partition("=")[::2] for word in shlex.split(text))
        elif name == "RUN":
            self._made(text)
        elif name == "USER":
            self.user = text
        elif name == "ENTRYPOINT":
            self.entry = json.loads(text)
        elif name == "CMD":
            self.default = json.loads(text)
        else:
            raise AssertionError(f"{name}: not followed here")

    def _made(self, command: str) -> None:
        done = self.run(command)
        assert done.returncode == 0, (command, done.stdout[-2000:], done.stderr[-2000:])

    @staticmethod
    def _copy(source: Path, target: Path, into: bool) -> None:
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"), dirs_exist_ok=True)
        else:
            shutil.copy(source, target / source.name if into else target)

    def start(self, *words: str, user: str | None = None) -> "subprocess.CompletedProcess[str]":
        """As `docker run --read-only [--user USER] IMAGE [WORDS]`."""
        return self.run(shlex.join([*self.entry, *(words or self.default)]), user or self.user, read_only=True, home="/")


def _pip() -> list[str]:
    """What this machine's pip is told by the environment, and that root's cache is not to be used."""
    return [f"{name}={value}" for name, value in os.environ.items() if name.startswith("PIP_") or name.endswith("_proxy")]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="a chroot is for root, on Linux")
def test_the_steps_of_the_image(tmp_path: Path) -> None:
    """Kernels are compiled in it, under another name of the CPU; any user runs it, on a root that is read-only, and compiles nothing again.

    Only what the embedded model needs, and for one instruction set: all of it takes minutes.
    """
    if subprocess.run(["unshare", "--mount", "true"], check=False, capture_output=True).returncode:
        pytest.skip("no namespaces here")
    image = Image(tmp_path / "root")
    for name, text in instructions():
        few = text.replace("bitnet compile --all", f"NUMBA_CPU_NAME=haswell bitnet compile tiny --isa {isa.chosen()}")
        assert few != text or "bitnet compile" not in text
        image.step(name, few)
    cache = image.root / "var/cache/bitnet"
    compiled = {path: path.stat().st_mtime_ns for path in cache.rglob("*") if path.is_file()}
    assert any(path.suffix == ".code" for path in compiled) and not list((image.root / "src").iterdir())
    by_default = image.start()
    assert by_default.returncode == 0 and len(by_default.stdout) > 100, by_default.stderr
    texts = set()
    for user in ("1000:1000", "1234:1234", "65534:65534"):
        done = image.start("run", "-p", "And the king said", "-n", "32", "--temp", "0", user=user)
        assert done.returncode == 0 and "32 new tokens" in done.stderr and "compil" not in done.stderr, done.stderr
        texts.add(done.stdout)
    assert len(texts) == 1
    assert compiled == {path: path.stat().st_mtime_ns for path in cache.rglob("*") if path.is_file()}
    assert image.start("pull", "owner/name", user="1234:1234").returncode in (1, 2)  # nowhere to write, said in a line
