"""`bitnet run MODEL QUESTION` and `-p`: when the chat format is applied, what is said of it, and what stays as it was."""

import contextlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from bitnet_cli.model.completion import Request, complete
from bitnet_cli.model.opening import Options, open_model, prompt_ids
from bitnet_cli.model.sampling import Sampling

from ..model.chat_models import CHATML, chat_model, reciting_model
from ..screen import BITNET, Screen, needs_tmux

Bitnet = Callable[..., Any]
GREEDY = ("--temp", "0", "-t", "1")
ANSWER = "Because of **scattering**."
WRAPPED = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"


@pytest.fixture(scope="module")
def reciting(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return reciting_model(tmp_path_factory.mktemp("ask") / "reciting.gguf", ANSWER)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights: its text depends on all that it is given."""
    return chat_model(tmp_path_factory.mktemp("ask") / "chatty.gguf")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return chat_model(tmp_path_factory.mktemp("ask") / "Falcon3-1B-Base.gguf")


@pytest.fixture(scope="module")
def thinking(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return reciting_model(tmp_path_factory.mktemp("ask") / "thinking.gguf", "<think> Hm, the sky. </think> It is blue, <think> really.")


def counts(done: Any) -> tuple[int, str]:
    facts = json.loads(done.stdout)
    return facts["timings"]["prompt_n"] + facts["timings"]["cache_n"], facts["prompt_format"]


def test_every_way_to_ask(bitnet: Bitnet, reciting: Path, tmp_path: Path) -> None:
    """Words after the model, -p, -f, a pipe: one answer, and the end, with -p also on a terminal that -st tells so."""
    (tmp_path / "q.txt").write_text("Why?\n")
    options = (*GREEDY, "-q")
    for arguments, streams in (
        ((reciting, "Why?"), {}),
        ((reciting, "Why", "is", "the", "sky", "blue?"), {}),
        (("-m", reciting, "Why?"), {}),
        ((reciting, "-p", "Why?"), {}),
        ((reciting, "-f", tmp_path / "q.txt"), {}),
        ((reciting,), {"stdin": "Why?\n"}),
        ((reciting, "-p", "-"), {"stdin": "Why?\n"}),
        ((reciting, "Why?"), {"terminals": ("stdin", "stdout")}),
        ((reciting, "-p", "Why?", "-st"), {"terminals": ("stdin", "stdout")}),
    ):
        done = bitnet("run", *arguments, *options, **streams)
        assert (done.returncode, done.stdout, done.stderr) == (0, ANSWER + "\n", ""), arguments


def test_the_question_is_one_message(bitnet: Bitnet, model: Path) -> None:
    for arguments in ((model, "Why", "so?"), (model, "-p", "Why so?")):
        assert counts(bitnet("run", *arguments, "-n", "1", "--json", *GREEDY)) == (len("1user\nWhy so?1\n1assistant\n"), "chatml")
    done = bitnet("run", model, "Why?", "-sys", "Be brief.", "-n", "1", "--json", *GREEDY)
    assert counts(done)[0] == len("1system\nBe brief.1\n1user\nWhy?1\n1assistant\n")


def test_what_continues_a_text(bitnet: Bitnet, model: Path, base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = ("-p", "Why?", "-n", "4", "--json", *GREEDY)
    raw = [bitnet("run", model, flag, *options) for flag in ("--raw", "-no-cnv", "--no-conversation")]
    assert {counts(done) for done in raw} == {(4, "raw")}
    assert counts(bitnet("run", base, *options)) == (4, "raw")
    assert counts(bitnet("run", base, "--chat-template", "chatml", *options))[1] == "chatml"
    monkeypatch.setenv("BITNET_RAW", "1")
    assert json.loads(bitnet("run", model, *options).stdout)["ids"] == json.loads(raw[0].stdout)["ids"]
    assert counts(bitnet("run", model, "-sys", "Be brief.", *options))[1] == "chatml"
    monkeypatch.setenv("BITNET_RAW", "0")
    assert counts(bitnet("run", model, *options))[1] == "chatml"


def test_what_a_prompt_could_have_before(bitnet: Bitnet, model: Path, tmp_path: Path) -> None:
    """The same keys and `prompt_format`; -n 128 by default, none for words after the model; the prompt's cache."""
    keys = {"model", "text", "ids", "stop_type", "finish", "stopping_word", "seed", "logprobs", "timings", "prompt_format"}
    first = bitnet("run", model, "-p", "Why?", "--json", "--logprobs", "2", "--ignore-eos", "--prompt-cache", tmp_path / "c", *GREEDY)
    facts = json.loads(first.stdout)
    assert (facts.keys(), len(facts["ids"]), facts["finish"], facts["stop_type"]) == (keys, 128, "length", "limit")
    assert [one["id"] for one in facts["logprobs"]] == facts["ids"]
    again = json.loads(bitnet("run", model, "-p", "Why?", "--json", "--prompt-cache", tmp_path / "c", "-n", "3", *GREEDY).stdout)
    assert again["timings"]["cache_n"] == len("1user\nWhy?1\n1assistant\n") - 1 and again["ids"] == facts["ids"][:3]
    long = json.loads(bitnet("run", model, "Why?", "--json", "-c", "300", "--ignore-eos", *GREEDY).stdout)
    assert len(long["ids"]) > 200
    stopped = bitnet("run", model, "-p", "Why?", "-n", "3", *GREEDY)
    assert "cut off after 3 tokens; -n -1" in stopped.stderr


def test_a_prompt_with_the_format_in_it(bitnet: Bitnet, model: Path, tmp_path: Path) -> None:
    """Typed, its control tokens are what they spell; of a file or a pipe only with --special; as words or a message never."""
    typed, count = WRAPPED.format("Why?"), len("1user\nWhy?1\n1assistant\n")
    options = ("-n", "1", "--json", *GREEDY)
    (tmp_path / "p.txt").write_text(typed)
    done = bitnet("run", model, "-p", typed.replace("\n", "\\n"), *options)
    assert counts(done) == (count, "raw") and "control tokens (<|im_start|>)" in done.stderr and "read as such" in done.stderr
    for given, stdin in ((("-f", tmp_path / "p.txt"), ""), ((), typed)):
        done = bitnet("run", model, *given, *options, stdin=stdin)
        assert counts(done) == (len(typed.rstrip("\n")), "raw") and "--special" in done.stderr
        assert counts(bitnet("run", model, *given, *options, "--special", stdin=stdin))[0] == count - 1
    told = bitnet("run", model, typed, *options)
    assert counts(told) == (len(typed) + len("1user\n1\n1assistant\n"), "chatml") and "control tokens" not in told.stderr


def test_special_shows_control_tokens(tmp_path: Path) -> None:
    opened = open_model(reciting_model(tmp_path / "m.gguf", "one two"), Options(threads=1))
    with contextlib.closing(opened.scheduler):
        opened.engine.start()
        ids = prompt_ids(opened.tokenizer, "<|im_start|>\n", special=True)
        assert len(ids) == 2
        for special, text in ((False, "one two"), (True, "one two<|im_end|>")):
            assert "".join(complete(opened, ids, Sampling(0), Request(3, ends=(), special=special))) == text


def test_reasoning_is_behind_an_option(bitnet: Bitnet, thinking: Path, tmp_path: Path) -> None:
    options = (*GREEDY, "-q", "-n", "-1")
    whole = "<think> Hm, the sky. </think> It is blue, <think> really.\n"
    assert bitnet("run", thinking, "Why?", *options).stdout == "It is blue, <think> really.\n"
    assert bitnet("run", thinking, "Why?", *options, "--show-reasoning").stdout == whole
    assert bitnet("run", thinking, "-cnv", *options, stdin="Why?\n").stdout == "It is blue, <think> really.\n"
    assert bitnet("run", thinking, "-cnv", "--show-reasoning", *options, stdin="Why?\n").stdout == whole
    assert json.loads(bitnet("run", thinking, "Why?", *options, "--json").stdout)["text"] == "It is blue, <think> really."
    cut = bitnet("run", thinking, "Why?", *GREEDY, "-n", "3")
    assert cut.stdout == "\n" and "still thinking" in cut.stderr
    begun = CHATML.replace("assistant\n'", "assistant\n<think>\n'")
    path = reciting_model(tmp_path / "b.gguf", "Hm. </think> Blue, so.", template=begun.replace("\n'", "\\n'"))
    assert bitnet("run", path, "--chat-template", "model", "Why?", *options).stdout == "Blue, so.\n"


def test_a_cut_off_document_is_no_success(bitnet: Bitnet, reciting: Path) -> None:
    for arguments in ((reciting, "Why?"), ("tiny", "-p", "The king")):
        done = bitnet("run", *arguments, "-j", "json", "-n", "3", "--json", *GREEDY)
        assert (done.returncode, json.loads(done.stdout)["finish"]) == (1, "length") and "cut off before" in done.stderr
    chat = bitnet("run", "tiny", "-cnv", "-j", "json", "-n", "3", "--json", *GREEDY, stdin="Who?\n")
    assert (chat.returncode, json.loads(chat.stdout)["finish"]) == (1, "length") and "cut off before" in chat.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("Why?", "-p", "a"), ("-p",)),
        (("Why?", "-cnv"), ("-cnv",)),
        (("-p", "a", "--raw", "-cnv"), ("--raw", "-cnv")),
        (("-p", "a", "--raw", "-sys", "b"), ("--raw", "-sys")),
        (("-cnv", "-p", "You are brief."), ("system message", "`bitnet run MODEL TEXT`")),
        ((), ("nothing was asked", "a pipe")),
    ],
    ids=" ".join,
)
def test_what_cannot_be_asked(
    bitnet: Bitnet, refused: Callable[..., None], reciting: Path, arguments: tuple[str, ...], words: tuple[str, ...]
) -> None:
    refused(bitnet("run", reciting, *arguments, *GREEDY, "-q"), 2, *words)


def test_alone_on_a_terminal(bitnet: Bitnet) -> None:
    """The embedded model says what it is, and what may be tried; each of that works."""
    for model in ((), ("tiny-a4.8",)):
        done = bitnet("run", *model, terminals=("stdin", "stdout"))
        tries = [line for line in done.stdout.splitlines() if line.startswith("  bitnet")]
        assert (done.returncode, done.stderr, len(tries)) == (0, "", 3) and "BitNet" in done.stdout
        assert [line for line in done.stdout.splitlines() if len(line) > 80] == []
        assert all(line.startswith("  bitnet run tiny-a4.8 ") == bool(model) for line in tries[:2])


@pytest.fixture
def screen(tmp_path: Path) -> Iterator[Callable[..., Screen]]:
    screens = []

    def make(*arguments: str, **options: Any) -> Screen:
        screens.append(Screen([*BITNET, "run", *arguments, *GREEDY], tmp_path, **options))
        return screens[-1]

    yield make
    for one in screens:
        one.close()


@needs_tmux
def test_a_question_on_a_terminal_opens_a_chat(screen: Callable[..., Screen], reciting: Path) -> None:
    """That goes on, and says how to leave it, and what -st does."""
    chat = screen(str(reciting), "-p", "Why is\\nthis?")
    text = chat.wait(lambda text: "scattering" in text and "\n>>> Send" in text)
    assert "Ctrl-D or /bye leaves" in text and "-st" in text and ">>> Why is\nthis?" in text
    chat.line("And why?")
    chat.wait(lambda text: text.count("Because of scattering.") == 2)
    chat.line("/?")
    chat.wait("/exit, /quit")
    chat.line("exit")
    chat.wait("left with 0")


@needs_tmux
@pytest.mark.parametrize("word", ["/exit", "/quit", "quit"])
def test_words_that_leave(screen: Callable[..., Screen], reciting: Path, word: str) -> None:
    chat = screen(str(reciting))
    chat.wait(">>> ")
    chat.line(word)
    chat.wait("left with 0")


@needs_tmux
def test_one_turn(screen: Callable[..., Screen], reciting: Path) -> None:
    chat = screen(str(reciting), "-st")
    chat.wait(">>> ")
    chat.line("Why?")
    assert "scattering" in chat.wait("left with 0")
