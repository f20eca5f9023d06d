"""`bitnet run`: JSON, stop strings, the prompt cache, names of models, and models that are not here yet."""

import json
import os
import pty
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bitnet_cli import load

from .hub_server import Repo, serve

Bitnet = Callable[..., Any]
PROMPT = ("-p", "And the king said", "--temp", "0", "-t", "1")
NAME = "tester/ready-gguf"


def test_json(bitnet: Bitnet) -> None:
    done = bitnet("run", "tiny", *PROMPT, "-n", "6", "--json", "--logprobs", "2", "-q")
    facts = json.loads(done.stdout)
    plain = bitnet("run", "-m", "tiny", *PROMPT, "-n", "6", "-q", "--no-stream").stdout
    assert (facts["text"] + "\n", len(facts["ids"]), facts["stop_type"], facts["stopping_word"]) == (plain, 6, "limit", "")
    assert [one["id"] for one in facts["logprobs"]] == facts["ids"]
    assert all(len(one["top_logprobs"]) == 2 and one["logprob"] <= 0 for one in facts["logprobs"])
    t = facts["timings"]
    assert (t["prompt_n"], t["cache_n"], t["predicted_n"], t["draft_n"]) == (5, 0, 6, 0)
    assert t["predicted_per_second"] == pytest.approx(5e3 / t["predicted_ms"], rel=0.01)


def test_words_of_other_programs(bitnet: Bitnet, refused: Callable[..., None], tmp_path: Path) -> None:
    """-temp, escapes in -p and neither in files nor in Python, biases as llama.cpp writes them, options for a GPU."""
    ask = ("run", "tiny", "-temp", "0", "-t", "1", "-n", "3", "--json")
    ids = [json.loads(bitnet(*ask, "-p", "And\\nGod", *flags).stdout)["timings"]["prompt_n"] for flags in ((), ("-e",), ("--no-escape",))]
    assert ids[0] == ids[1] < ids[2]
    (tmp_path / "p.txt").write_text("And\\nGod")
    as_it_is = [
        bitnet(*ask, "-f", tmp_path / "p.txt", "-e"),
        bitnet(*ask, "-e", stdin="And\\nGod"),
        bitnet(*ask, "-p", "-", stdin="And\\nGod"),
    ]
    assert {json.loads(done.stdout)["timings"]["prompt_n"] for done in as_it_is} == {ids[2]}
    with load("tiny", threads=1) as model:
        assert model.generate("And\\nGod", max_tokens=1).timings.prompt_tokens == ids[2]
    plain = json.loads(bitnet(*ask, "-p", "And").stdout)["ids"]
    biased = json.loads(bitnet(*ask, "-p", "And", "--logit-bias", f"{plain[0]}-inf", "-l", f"{plain[1]}-2.5").stdout)["ids"]
    assert plain[0] not in biased
    assert json.loads(bitnet(*ask, "-p", "And", "-l", "42+100").stdout)["ids"] == [42] * 3
    gpu = bitnet(*ask, "-p", "And", "-ngl", "99", "-dev", "CUDA0")
    assert json.loads(gpu.stdout)["ids"] == plain and "runs on the CPU" in gpu.stderr
    refused(bitnet(*ask, "-p", "And", "-l", "1=2"), 2, "--logit-bias 1=2", "15-inf")
    refused(bitnet(*ask, "-p", "And", "-l", "70000+1"), 2, "the vocabulary has 4096 tokens")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("run", "--nonsense"), ("no such option", "`bitnet run -h`")),
        (("run", "-t", "x"), ("'-t'", "integer")),
        (("run", "--temp"), ("--temp", "requires an argument")),
        (("nonsense",), ("no such command",)),
        (("quantize", "a", "b", "c"), ("'c' is not one of",)),
        (("run", "no.gguf", "-p", "a"), ("no.gguf", "No such file")),
        (("inspect", "a/b/c"), ("a/b/c", "No such file")),
        (("perplexity", "-m", "no.gguf", "-f", "no.txt"), ("no.txt", "No such file")),
        (("quantize", "no.gguf", "b.gguf"), ("no.gguf", "No such file")),
        (("bench", "no.gguf"), ("no.gguf", "No such file")),
        (("bench", "compare", "a.json", "b.json"), ("a.json", "No such file")),
        (("embed", "-m", "no.gguf", "a"), ("no.gguf", "No such file")),
        (("convert", "nowhere"), ("nowhere", "no such folder")),
    ],
    ids=lambda value: " ".join(value)[:30],
)
def test_errors_of_the_command_line(
    bitnet: Bitnet, refused: Callable[..., None], arguments: tuple[str, ...], words: tuple[str, ...]
) -> None:
    """One line, exit code 2."""
    refused(bitnet(*arguments), 2, *words)


def test_help_is_whole(bitnet: Bitnet, monkeypatch: pytest.MonkeyPatch) -> None:
    """At any width: no line is longer, no name is cut off, and every word is there."""
    words = {}
    for columns in (40, 80, 200):
        monkeypatch.setenv("COLUMNS", str(columns))
        for command in ("", "run", "convert", "quantize", "inspect", "perplexity", "embed", "bench", "bench compare", "bench report"):
            page = bitnet(*command.split(), "--help").stdout
            assert "…" not in page
            assert [line for line in page.splitlines() if len(line) >= columns] == []
            whole = "".join(page.split())
            assert words.setdefault(command, whole) == whole


@pytest.mark.slow
def test_names_work_in_every_command(bitnet: Bitnet, tmp_path: Path) -> None:
    assert bitnet("quantize", "tiny", tmp_path / "m.gguf", "tq2_0", "-q").returncode == 0
    assert bitnet("inspect", "tiny").returncode == 0
    assert bitnet("embed", "-m", "tiny", "--pooling", "mean", "a", "-q").returncode == 0
    (tmp_path / "t.txt").write_text("And God said, Let there be light.")
    told = bitnet("perplexity", "tiny", "-f", tmp_path / "t.txt", "-q")
    assert told.returncode == 0 and " ± " in told.stdout and "taken as independent" in told.stdout
    (tmp_path / "one.txt").write_text("And")
    one = bitnet("perplexity", "tiny", "-f", tmp_path / "one.txt", "-q")
    assert one.returncode == 0 and "±" not in one.stdout and "of one there is no error" in one.stdout


def test_stop_string_with_an_escape(bitnet: Bitnet) -> None:
    whole = bitnet("run", *PROMPT, "-n", "9", "-q").stdout
    word = whole.split()[3]
    done = bitnet("run", *PROMPT, "-n", "9", "--stop", "\\n\\nnever", "--stop", word, "--verbose")
    assert done.stdout == whole[: whole.index(word)] + "\n"
    assert f"stop string {word!r}" in done.stderr
    assert "KV cache f16" in done.stderr


def test_prompt_cache(bitnet: Bitnet, refused: Callable[..., None], tmp_path: Path) -> None:
    options = (*PROMPT, "-n", "8", "--prompt-cache", tmp_path / "cache")
    first = bitnet("run", *options)
    second = bitnet("run", *options, "--json")
    assert json.loads(second.stdout)["text"] + "\n" == first.stdout
    assert json.loads(second.stdout)["timings"]["cache_n"] == 4  # all but the last token
    (tmp_path / "cache").write_bytes(b"something else")
    refused(bitnet("run", *options, "-q"), 3, "first line")
    assert (tmp_path / "cache").read_bytes() == b"something else"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("tiny", "-m", "tiny"), ("a question after the model", "leave out -p")),
        (("--logprobs", "2"), ("--json",)),
        (("no-such-model",), ("no such model", "`bitnet list`")),
        (("owner/name",), ("not on this computer", "`bitnet pull owner/name` gets it")),
        (("--mirostat", "1"), ("--mirostat is 1",)),
    ],
    ids=str,
)
def test_what_cannot_be_asked(bitnet: Bitnet, refused: Callable[..., None], arguments: tuple[str, ...], words: tuple[str, ...]) -> None:
    nothing = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": "/nonexistent"} if "owner/name" in arguments else None
    refused(bitnet("run", *PROMPT, "-q", *arguments, env=nothing), 2, *words)


def test_the_list_needs_nothing_heavy() -> None:
    code = "import sys; sys.argv = ['bitnet', 'run', '--list']\ntry:\n    from bitnet_cli.cli import main; main()\nfinally:\n    "
    code += "print(sorted({'numpy', 'numba', 'rich'} & set(sys.modules) - {'rich'}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "tiny" in done.stdout and done.stdout.endswith("[]\n")


def test_version(bitnet: Bitnet) -> None:
    done = bitnet("--version", env={**os.environ, "BITNET_ISA": "naive"})
    assert done.stdout.startswith("bitnet ") and "instruction set naive" in done.stdout and "numba " in done.stdout


@pytest.mark.skipif(os.name != "posix", reason="a terminal of POSIX")
@pytest.mark.parametrize("answer", ["y", "n"])
def test_a_model_is_downloaded_after_asking(answer: str, tmp_path: Path) -> None:
    """On a terminal. The file of the repository that has the weights packed, and no other."""
    from bitnet_cli.embedded import EMBEDDED_MODEL

    with serve() as hub:
        hub.repos[NAME] = Repo({"ggml-model-i2_s.gguf": EMBEDDED_MODEL.read_bytes(), "other.gguf": b"x", "README.md": b"x"})
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUGGING"))}
        env = kept | {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "hf"), "BITNET_MODELS": str(tmp_path / "kept"), "TERM": "xterm"}
        command = [sys.executable, "-m", "bitnet_cli", "run", NAME, *PROMPT, "-n", "3"]
        ours, theirs = pty.openpty()
        process = subprocess.Popen(command, env=env, cwd=tmp_path, stdin=theirs, stdout=subprocess.PIPE, stderr=theirs)
        os.close(theirs)
        said = b""
        try:
            while b"[Y/n]" not in said:
                said += os.read(ours, 1000)
            os.write(ours, answer.encode() + b"\n")
            out = process.communicate(timeout=120)[0]
        finally:
            process.kill()
            os.close(ours)
        assert b"Download ggml-model-i2_s.gguf, 3.45 MB?" in said
        if answer == "y":
            assert (process.returncode, hub.fetched()) == (0, ["ggml-model-i2_s.gguf"])
            assert len(out) > 3
        else:
            assert (process.returncode, hub.fetched(), out) == (2, [], b"")
