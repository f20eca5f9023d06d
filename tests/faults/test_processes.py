"""Processes that are killed, stopped, short of memory, or two at a time at the first compilation."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from bitnet_kernels import compile_cache, isa, native

from bitnet_cli.embedded import EMBEDDED_MODEL

from ..command import bitnet

pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals and limits of POSIX")
COMPILED = pytest.mark.skipif(isa.chosen() == isa.NAIVE, reason="nothing is compiled")
BITNET = (sys.executable, "-m", "bitnet_cli")
PROMPT = ("-p", "And the king said", "--temp", "0", "-t", "2", "-q")


def start(*arguments: str | Path, **options: object) -> "subprocess.Popen[bytes]":
    pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "bufsize": 0}
    return subprocess.Popen([*BITNET, *map(str, arguments)], **{**pipes, **options})  # type: ignore[call-overload, no-any-return]


@pytest.mark.parametrize("times", [20])
def test_stopped_and_continued(times: int) -> None:
    """As by Ctrl-Z and fg, at random moments of a text by two threads: the text is the same. Timers do not count against it."""
    words = ("run", *PROMPT, "-n", "400", "--ignore-eos")
    expected = bitnet(*words).stdout.encode()
    rng, stops = random.Random(1), 0
    with start(*words) as process:
        assert process.stdout is not None
        first = process.stdout.read(1)
        for _ in range(times):
            if process.poll() is None:
                process.send_signal(signal.SIGSTOP)
                stops += 1
                time.sleep(rng.uniform(0, 0.01))
                process.send_signal(signal.SIGCONT)
                time.sleep(rng.uniform(0, 0.01))
        rest, errors = process.communicate(timeout=120)
    assert (process.returncode, errors, first + rest) == (0, b"", expected)
    assert stops


@pytest.mark.slow
@pytest.mark.parametrize("what", ["run", "chat", "quantize"])
def test_killed_at_random_moments(what: str, tmp_path: Path) -> None:
    """Each time files are absent, or whole; and what comes next works as if nothing had been, and takes leftovers away."""
    kept, chat, model = tmp_path / "kept.cache", tmp_path / "a.json", tmp_path / "q.gguf"
    words: dict[str, tuple[str | Path, ...]] = {
        "run": ("run", *PROMPT, "-n", "8", "--prompt-cache", kept),
        "chat": ("run", "tiny", "-cnv", "--temp", "0", "--seed", "1", "-t", "2", "-q", "-n", "8"),
        "quantize": ("quantize", EMBEDDED_MODEL, model, "tq2_0", "--force", "-q"),
    }
    said = f"Who?\n/save {chat}\n".encode() if what == "chat" else b""
    path = {"run": kept, "chat": chat, "quantize": model}[what]

    def whole() -> tuple[int, bytes]:
        with start(*words[what], stdin=subprocess.PIPE) as process:
            output, errors = process.communicate(said, timeout=120)
        assert process.returncode == 0, errors
        return process.returncode, output

    begin = time.perf_counter()
    expected = whole()
    seconds, contents = time.perf_counter() - begin, path.read_bytes()
    rng, killed = random.Random(2), 0
    for _ in range(8):
        path.unlink(missing_ok=True)
        process = start(*words[what], stdin=subprocess.PIPE)
        assert process.stdin is not None
        process.stdin.write(said)
        process.stdin.close()
        time.sleep(seconds * rng.uniform(0.2, 1.0))
        process.kill()
        killed += process.wait() == -signal.SIGKILL
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        process.stderr.close()
        assert not path.exists() or path.read_bytes() == contents
        leftovers = [other for other in path.parent.iterdir() if other != path]
        assert all(other.name.endswith(".part") for other in leftovers)
    assert killed
    path.unlink(missing_ok=True)
    assert whole() == expected and path.read_bytes() == contents
    assert what == "chat" or list(path.parent.iterdir()) == [path]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_AS as on Linux")
@pytest.mark.parametrize("megabytes", [60, 150, 180, 210, 240, 270, 300, 330, 360, 400, 500])
def test_little_memory(megabytes: int) -> None:
    """Addresses run out while libraries load, while the model does, or never: text, or an error, and no signal, no traceback, no hang."""
    import resource

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (megabytes << 20, megabytes << 20))

    with start("run", *PROMPT, "-n", "2", preexec_fn=limit) as process:
        output, errors = process.communicate(timeout=120)
    text = errors.decode()
    assert (process.returncode == 0) == (output != b"") and process.returncode >= 0, (process.returncode, text)
    assert "Traceback" not in text and "Exception ignored" not in text, text
    assert process.returncode == 0 or text


def counted(folder: Path, processes: int) -> list[dict[str, object]]:
    """What tests/kernels/cache_state.py finds in so many processes that begin at once, with one empty folder of kernels."""
    script = Path(__file__).parents[1] / "kernels" / "cache_state.py"
    env = {**os.environ, "BITNET_CACHE_DIR": str(folder), "BITNET_ISA": ""}
    both = [subprocess.Popen([sys.executable, str(script), "barrier"], env=env, stdout=subprocess.PIPE) for _ in range(processes)]
    found = []
    for process in both:
        output, _ = process.communicate(timeout=240)
        assert process.returncode == 0
        found.append(json.loads(output))
    return found


@COMPILED
def test_processes_at_once_compile_once(tmp_path: Path) -> None:
    """The others wait, and load what the first has kept."""
    found = counted(tmp_path / "base", 4)
    assert all(result["right"] for result in found)
    assert sorted(bool(result["compiled"]) for result in found) == [False, False, False, True]


@COMPILED
def test_a_compilation_that_was_killed_or_hangs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A lock goes with its process; of one that was stopped, as by Ctrl-Z, it is waited for a while only."""
    fcntl = pytest.importorskip("fcntl")
    monkeypatch.setattr(native, "WAIT", 0.3)
    with (tmp_path / "a.lock").open("w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        begin = time.monotonic()
        with native._alone(tmp_path, "a"):
            assert 0.3 <= time.monotonic() - begin < 30
    with native._alone(tmp_path, "a"), (tmp_path / "a.lock").open("w") as other, pytest.raises(BlockingIOError):
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    with native._alone(None, "a"), native._alone(tmp_path / "no folder", "a"):
        pass


@COMPILED
@pytest.mark.slow
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a file that is always full")
def test_a_full_disk_under_the_kernels_is_said_once(tmp_path: Path) -> None:
    """The text comes all the same, also where some parts of a step are missing and cannot be kept."""
    words = ["run", "-p", "And", "-n", "2", "--temp", "0", "-t", "1"]
    whole = compile_cache.folder()
    assert whole is not None
    expected = bitnet(*words, process=True, check=True).stdout
    base = tmp_path / "base"
    base.mkdir(mode=0o700)
    shutil.copytree(whole, base / whole.name, copy_function=os.link, ignore=shutil.ignore_patterns("*.lock", "step.p*", "logits.*"))
    code = (
        "import sys; from pathlib import Path; from bitnet_cli.start import main\n"
        "Path.write_bytes = lambda self, data: open('/dev/full', 'wb', buffering=0).write(data)\n"
        "main()"
    )
    env = {**os.environ, "BITNET_CACHE_DIR": str(base)}
    done = subprocess.run([sys.executable, "-c", code, *words], env=env, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0 and done.stdout == expected != "", done.stderr
    notes = [line for line in done.stderr.splitlines() if "could not be kept" in line]
    assert len(notes) == 1 and "No space left" in notes[0] and str(base) in notes[0], done.stderr


def test_the_folder_of_kernels_knows_its_locks() -> None:
    """A lock is no machine code: nothing is loaded from it."""
    folder = compile_cache.folder()
    if folder is not None:
        (folder / "x.y-0.lock").touch()
        assert native.linked("x.y-0") == 0
        (folder / "x.y-0.lock").unlink()
