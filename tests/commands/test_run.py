"""`bitnet run`: what goes to stdout, what to stderr, and the exit code, for good input, bad input and Ctrl-C.

The naive kernels do the work where it does not matter which: they need not be compiled.
"""

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from bitnet_cli.cli import reader_left

from ..command import bitnet
from ..model.builder import Sizes, random_model, write_model

Done = subprocess.CompletedProcess[bytes]
posix_only = pytest.mark.skipif(os.name != "posix", reason="signals, pipes and devices of POSIX")
GREEDY = ("--temp", "0", "-t", "1")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Context 64. With a head of its own, so that it does not repeat what it hears: bytes of every value, most of them not UTF-8."""
    return write_model(tmp_path_factory.mktemp("run") / "model.gguf", random_model(seed=7, tied=False))


@pytest.fixture(scope="module")
def endless(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A context of 131,072 tokens and no end token to meet: minutes of text."""
    keys = {"tokenizer.ggml.eos_token_id": None, "tokenizer.ggml.token_type": [1] * 260, "tokenizer.ggml.add_bos_token": False}
    z = Sizes(layers=1, context=1 << 17)
    return write_model(tmp_path_factory.mktemp("run") / "endless.gguf", random_model(z, seed=7, tied=False), metadata=keys)


def environment(**changes: str) -> dict[str, str]:
    clean = {key: value for key, value in os.environ.items() if key not in ("NUMBA_DISABLE_JIT", "PYTHONIOENCODING")}
    return clean | {"BITNET_ISA": "naive"} | changes


def command(model: Path | None, *arguments: str | Path) -> list[str]:
    """For a process of its own."""
    return [sys.executable, "-m", "bitnet_cli", "run", *(["-m", str(model)] if model else []), *map(str, arguments)]


def run(model: Path | None, *arguments: str | Path, stdin: bytes = b"", env: dict[str, str] | None = None, **options: Any) -> Done:
    named = ["-m", model] if model else []
    done = bitnet("run", *named, *arguments, stdin=stdin, text=False, env=environment() if env is None else env, **options)
    assert b"Traceback" not in done.stderr, done.stderr.decode()
    return done


def refused(done: Done, code: int, *words: str) -> None:
    """One line on stderr that has the words, nothing on stdout."""
    error = done.stderr.decode()
    assert (done.returncode, done.stdout) == (code, b""), error
    assert error.startswith("bitnet: error: "), error
    assert error.count("\n") == 1, error
    assert [word for word in words if word not in error] == [], error


def test_text_on_stdout_and_timings_on_stderr(model: Path) -> None:
    """By default kernels, with one thread and with two: temperature 0 gives the same text."""
    one = run(model, "-p", "Hello", "-n", "12", "--temp", "0", "-t", "1", env={**os.environ})
    two = run(model, "-p", "Hello", "-n", "12", "--temp", "0", "-t", "2", env={**os.environ})
    assert one.returncode == two.returncode == 0, one.stderr + two.stderr
    assert one.stdout == two.stdout
    text = one.stdout.decode()
    assert text.endswith("\n")
    assert 0 < len(text) - 1 <= 12
    notes = one.stderr.decode().splitlines()
    assert "prompt 6 tokens at " in notes[-1]
    assert "12 new tokens at " in notes[-1]
    assert notes[-1].endswith(", length")
    assert "seed" not in notes[-1]


def test_every_way_to_give_a_prompt(model: Path, tmp_path: Path) -> None:
    (tmp_path / "prompt.txt").write_bytes("Ünï\n".encode())
    options = ("-n", "8", "-q", *GREEDY)
    texts = [
        run(model, "-p", "Ünï", *options).stdout,
        run(model, "-f", tmp_path / "prompt.txt", *options).stdout,
        run(model, *options, stdin="Ünï\r\n".encode()).stdout,
        run(model, "-p", "-", *options, stdin="Ünï".encode()).stdout,
    ]
    assert len(texts[0]) > 1
    assert texts == [texts[0]] * 4


def test_an_empty_prompt_begins_a_text(model: Path) -> None:
    done = run(model, "-n", "3", *GREEDY)
    assert done.returncode == 0
    assert b"prompt 1 tokens" in done.stderr


def test_an_empty_prompt_without_a_token_to_begin_with(tmp_path: Path) -> None:
    keys = {"tokenizer.ggml.bos_token_id": None, "tokenizer.ggml.add_bos_token": None, "tokenizer.ggml.token_type": None}
    refused(run(write_model(tmp_path / "m.gguf", metadata=keys)), 2, "the prompt is empty")


def test_quiet(model: Path) -> None:
    done = run(model, "-p", "a", "-n", "2", "-q")
    assert (done.returncode, done.stderr) == (0, b"")


def test_the_seed_is_told_and_gives_the_same_text(model: Path) -> None:
    first = run(model, "-p", "Once", "-n", "20")
    seed = first.stderr.decode().rstrip().rpartition("seed ")[2]
    assert seed.isdigit()
    again = run(model, "-p", "Once", "-n", "20", "--seed", seed)
    assert again.stdout == first.stdout


def test_another_seed_gives_another_text(model: Path) -> None:
    """At temperature 2: at the default one, this small model says the same with one pair of seeds in some hundreds."""
    texts = {run(model, "-p", "Once", "-n", "20", "--temp", "2", "--seed", str(seed)).stdout for seed in (1, 2)}
    assert len(texts) == 2


def test_no_tokens_and_as_many_as_fit(model: Path) -> None:
    none = run(model, "-p", "abc", "-n", "0")
    assert (none.returncode, none.stdout.strip()) == (0, b"")
    assert b", 0 new tokens" in none.stderr
    full = run(model, "-p", "abc", "-n", "-1", "-c", "20", *GREEDY)
    assert full.returncode == 0
    assert b"17 new tokens" in full.stderr  # 20 places, 4 of them the prompt's; the last token needs none


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("-p", "x" * 70), ("71 tokens", "context of 64")),
        (("-p", "abcdef", "-c", "5"), ("7 tokens", "context of 5")),
        (("-p", "a", "-c", "65"), ("context 65", "1 to 64")),
        (("-p", "a", "-n", "-2"), ("-n",)),
        (("-p", "a", "-t", "-1"), ("-t",)),
        (("-p", "a", "-t", "100000"), ("100000 threads", "256")),
        (("-p", "a", "--temp", "nan"), ("--temp is nan", "0.0 to 100.0")),
        (("-p", "a", "--top-p", "2"), ("--top-p is 2.0",)),
        (("-p", "a", "--seed", str(2**64)), ("--seed is",)),
        (("-f", "no such file"), ("no such file", "No such file")),
        (("-f", "."), (".", "directory")),
        (("-p", "a", "-f", "b"), ("-p", "-f", "not both")),
    ],
    ids=lambda value: " ".join(value)[:20],
)
def test_what_cannot_be_asked(model: Path, arguments: tuple[str, ...], words: tuple[str, ...]) -> None:
    refused(run(model, *arguments), 2, *words)


@posix_only
def test_a_prompt_without_an_end(model: Path) -> None:
    refused(run(model, "-f", "/dev/zero"), 2, "the prompt is larger than 64 MiB")


def test_files_that_are_no_model(model: Path, tmp_path: Path) -> None:
    (tmp_path / "garbage.gguf").write_bytes(b"<!DOCTYPE html>" * 1000)
    (tmp_path / "cut.gguf").write_bytes(model.read_bytes()[:-1000])
    (tmp_path / "empty.gguf").touch()
    refused(run(tmp_path / "missing.gguf", "-p", "a"), 2, "missing.gguf", "No such file")
    refused(run(tmp_path, "-p", "a"), 2, str(tmp_path), "is a folder with 3 GGUF models")
    refused(run(tmp_path / "empty.gguf", "-p", "a"), 3, "empty.gguf", "is empty")
    refused(run(tmp_path / "garbage.gguf", "-p", "a"), 3, "garbage.gguf")
    refused(run(tmp_path / "cut.gguf", "-p", "a"), 3, "cut.gguf")


@posix_only
def test_a_named_pipe_is_no_model(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.gguf")
    refused(run(tmp_path / "pipe.gguf", "-p", "a"), 3, "pipe.gguf", "is a named pipe")


def test_a_model_of_another_kind(tmp_path: Path) -> None:
    refused(run(write_model(tmp_path / "m.gguf", arch="mamba"), "-p", "a"), 4, "general.architecture", "'mamba'")


def test_an_instruction_set_that_does_not_exist(model: Path) -> None:
    refused(run(model, "-p", "a", env=environment(BITNET_ISA="nonsense")), 4, "BITNET_ISA=nonsense", "known are")


def test_logits_that_are_not_finite(tmp_path: Path) -> None:
    """The largest float32 norm weights: finite in the file, not in the model."""
    import numpy as np

    huge = {"output_norm.weight": np.full(128, 3e38, np.float32)}
    refused(run(write_model(tmp_path / "m.gguf", tensors=huge), "-p", "a", "-q", env=environment(PYTHONWARNINGS="ignore")), 1, "not finite")


def wait_for_output(process: subprocess.Popen[bytes]) -> bytes:
    assert process.stdout is not None
    data = process.stdout.read(1)
    assert data, process.stderr and process.stderr.read()
    return data


@posix_only
@pytest.mark.parametrize("kernels", ["naive", ""])
def test_ctrl_c(endless: Path, kernels: str) -> None:
    """The text so far stays, the timings are printed, the exit code is 130, and all that soon (a second where the machine is quiet)."""
    words = command(endless, "-p", "Hello", "-n", "-1", "-c", "131072", "-t", "2")
    env = environment(BITNET_ISA=kernels)
    with subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=env) as process:
        start = wait_for_output(process)
        time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        at = time.monotonic()
        rest, notes = process.communicate(timeout=30)
        took = time.monotonic() - at
    assert process.returncode == 130, notes.decode()
    assert (start + rest).endswith(b"\n")
    assert len(rest) > 1
    assert b"Traceback" not in notes
    assert b"interrupted" in notes
    assert took < 10


@pytest.mark.slow
@pytest.mark.parametrize("after", [1.0, 3.0])
def test_ctrl_c_while_kernels_compile(endless: Path, tmp_path: Path, after: float) -> None:
    """LLVM drops exceptions that are raised while it calls back; the interrupt must not be lost, nor become another error."""
    env = environment(BITNET_ISA="", BITNET_CACHE_DIR=str(tmp_path / "cache"))
    process = subprocess.Popen(
        command(endless, "-p", "a", "-n", "-1", "-c", "131072"), env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    time.sleep(after)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert b"Traceback" not in errors
    assert b"Exception ignored" not in errors


@posix_only
def test_a_reader_that_goes_away(endless: Path) -> None:
    """`bitnet run ... | head -c 1`: generation stops, and nobody complains."""
    words = command(endless, "-p", "Hello", "-n", "-1", "-c", "131072", "-t", "1", "-q")
    with subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment()) as process:
        wait_for_output(process)
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(30) in (1, 141)


@posix_only
def test_what_a_pipe_without_a_reader_is_called() -> None:
    """On Windows an invalid argument without a file."""
    invalid, named = OSError(errno.EINVAL, "Invalid argument"), OSError(errno.EINVAL, "Invalid argument", "model.gguf")
    assert reader_left(BrokenPipeError()) and reader_left(invalid, "nt")
    assert not reader_left(invalid, "posix") and not reader_left(named, "nt") and not reader_left(OSError(errno.ENOSPC, "full"), "nt")


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_streams(model: Path, closed: str) -> None:
    """A note for a stderr that is closed must not land on stdout either."""
    script = f'"$@" {closed}'
    words = ["sh", "-c", script, "sh", *command(model, "-p", "Hello", "-n", "3", *GREEDY)]
    done = subprocess.run(words, check=False, capture_output=True, timeout=300, env=environment())
    assert (done.returncode, b"Traceback" in done.stderr) == (0, False), done.stderr.decode()
    if ">&-" not in closed.replace("2>&-", ""):
        assert done.stdout == run(model, "-p", "Hello", "-n", "3", "-q", *GREEDY).stdout


@pytest.mark.parametrize(
    "changes", [{"LC_ALL": "C"}, {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}, {"PYTHONIOENCODING": "ascii"}]
)
def test_output_that_the_encoding_lacks(model: Path, changes: dict[str, str]) -> None:
    """U+FFFD, of which this model's text is full, is not in ASCII: `?` stands for it there."""
    done = run(model, "-p", "Ünï", "-n", "30", "-q", *GREEDY, env=environment(**changes))
    assert done.returncode == 0, done.stderr
    assert (b"?" in done.stdout) or ("\ufffd".encode() in done.stdout)


def test_control_tokens_typed_by_a_user_are_text(model: Path) -> None:
    done = run(model, "-p", "<|eot_id|>", "-n", "1")
    assert b"prompt 11 tokens" in done.stderr  # BOS and ten bytes
