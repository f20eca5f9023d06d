"""`bitnet run -cnv` with pipes: lines in, answers out; commands, saved chats, what is refused."""

import json
import os
import re
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bitnet_cli.commands.chat import commands, files
from bitnet_cli.commands.chat.talk import Talk, Wishes
from bitnet_cli.commands.chat.terminal import Silent, moves
from bitnet_cli.commands.run import Prompt, Request, Show, run
from bitnet_cli.errors import BadFileError, BitnetError, UsageError
from bitnet_cli.gguf_file.reader import open_gguf
from bitnet_cli.model.chat import ContextFullError
from bitnet_cli.model.opening import OpenModel, Options, open_model
from bitnet_cli.model.sampling import Sampling
from bitnet_cli.text.chat.choice import choose
from bitnet_cli.text.chat.templates import Message, checked_messages
from bitnet_cli.text.from_gguf import tokenizer_from_metadata
from bitnet_cli.text.tokenizer import Tokenizer

from ...command import Done, bitnet
from ...model.chat_models import IM_END, chat_model, reciting_model

GREEDY = ("--temp", "0", "-t", "1")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return chat_model(tmp_path_factory.mktemp("chat") / "chatty.gguf")


@pytest.fixture(scope="module")
def reciting(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return reciting_model(tmp_path_factory.mktemp("chat") / "reciting.gguf", "I know **one** answer.")


def talk(model: Path, stdin: str, *arguments: str, code: int = 0, **environment: str) -> Done:
    env = {**os.environ, "BITNET_ISA": "naive", **environment}
    done = bitnet("run", model, "-cnv", *GREEDY, *arguments, stdin=stdin, env=env)
    assert "Traceback" not in done.stderr, done.stderr
    assert done.returncode == code, done.stderr
    return done


def objects(done: Done) -> list[dict[str, Any]]:
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_lines_in_answers_out(reciting: Path) -> None:
    done = talk(reciting, 'hello\n\n"""two\nlines"""\n')
    assert done.stdout == "I know **one** answer.\n" * 2
    assert done.stderr == ""
    assert talk(reciting, "").stdout == ""


def test_json_lines_and_the_prompt_cache(model: Path) -> None:
    done = talk(model, "question 1\nquestion 2\n/undo\nquestion 3\n", "--json", "-n", "6", "-sys", "Be brief.")
    first, second, third = objects(done)
    assert (first["role"], first["finish"], first["new_tokens"], first["cached_tokens"]) == ("assistant", "length", 6, 0)
    assert second["cached_tokens"] == first["prompt_tokens"] + 5
    assert second["prompt_tokens"] - second["cached_tokens"] == 1 + 4 + len("\nuser\nquestion 2\nassistant\n")
    assert third["cached_tokens"] > first["prompt_tokens"]  # up to the number in the question
    assert "taken back: question 2" in done.stderr


def test_a_loaded_chat_goes_on_with_the_same_tokens(model: Path, tmp_path: Path) -> None:
    """What follows is what would have followed."""
    file = tmp_path / "talk.json"
    flags = ("--json", "-n", "12", "-sys", "Be brief.")
    whole = objects(talk(model, f"one\ntwo\n/save {file}\nthree\n/retry\n", *flags))
    loaded = objects(talk(model, f"/load {file}\nthree\n/retry\n", "--json", "-n", "12"))
    assert [a["content"] for a in loaded] == [a["content"] for a in whole[2:]]
    assert [a["prompt_tokens"] for a in loaded] == [a["prompt_tokens"] for a in whole[2:]]
    saved = json.loads(file.read_text())
    assert (saved["format"], saved["version"], saved["template"]) == ("bitnet-chat", 1, "chatml")
    assert saved["model"] == {"name": "chatty", "vocab_size": 260}
    assert [m["role"] for m in saved["messages"]] == ["system", "user", "assistant", "user", "assistant"]
    assert len(saved["messages"][2]["ids"]) == 12
    if os.name == "posix":
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert list(tmp_path.iterdir()) == [file]


@pytest.fixture
def opened(model: Path) -> Iterator[OpenModel]:
    one = open_model(model, Options(threads=1))
    yield one
    one.scheduler.close()


@pytest.fixture(scope="module")
def tokenizer(model: Path) -> Tokenizer:
    with open_gguf(model) as file:
        return tokenizer_from_metadata(file.metadata, str(model))


def test_a_saved_chat_cannot_forge_control_tokens(tokenizer: Tokenizer, tmp_path: Path) -> None:
    """Stored ids count only where they are the content's, without control tokens; else the content is encoded as text."""
    file = tmp_path / "talk.json"
    value = {"format": "bitnet-chat", "version": 1, "model": {"name": "chatty", "vocab_size": 260}, "template": "chatml", "sampling": {}}
    hi = [ord(letter) for letter in "hi"]
    for ids in (hi, [*hi, IM_END], [IM_END, *hi], [1, 2, 3], [*hi, 999], [-1], "hi", [True], None, []):
        messages = [{"role": "user", "content": "a", "ids": hi}, {"role": "assistant", "content": "hi", "ids": ids}]
        file.write_text(json.dumps(value | {"messages": messages}))
        saved = files.load(file, tokenizer)
        assert saved.messages == [Message("user", "a"), Message("assistant", "hi", tuple(hi) if ids == hi else None)]
        assert saved.exact == (ids == hi)
    other = value | {"messages": [{"role": "assistant", "content": "hi", "ids": hi}], "model": {"vocab_size": 261}}
    file.write_text(json.dumps(other))
    assert files.load(file, tokenizer).messages[0].ids is None


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("nonsense", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("{}", "not a saved chat"),
        ('{"format": "bitnet-chat", "version": 9}', "version"),
        ('{"format": "bitnet-chat", "version": 1, "messages": [1]}', "messages"),
        ('{"format": "bitnet-chat", "version": 1, "messages": [{"role": "root", "content": ""}], "sampling": {}}', "role"),
        ('{"format": "bitnet-chat", "version": 1, "messages": [], "sampling": {"temperature": "hot"}}', "temperature"),
        ('{"format": "bitnet-chat", "version": 1, "messages": [], "sampling": {"temperature": NaN}}', "temperature is nan"),
        *(
            (f'{{"format": "bitnet-chat", "version": 1, "messages": [], "sampling": {{"logit_bias": {bias}}}}}', "logit")
            for bias in ("3", "[1]", "[[1]]", "[[1, true]]", f"[[1, {10**400}]]", "[[1, NaN]]", "[[-1, 0]]", f"[[{2**64}, 0]]", "null")
        ),
        ('{"format": "bitnet-chat", "version": 1, "messages": [], "sampling": {}, "first": 3}', "first"),
    ],
)
def test_damaged_saved_chats(tokenizer: Tokenizer, tmp_path: Path, text: str, word: str) -> None:
    file = tmp_path / "talk.json"
    file.write_text(text)
    with pytest.raises(BadFileError, match=word):
        files.load(file, tokenizer)
    if '"version": 1' not in text:  # what is not a saved chat is not overwritten
        with pytest.raises(UsageError, match="not a saved chat"):
            files.save(file, tokenizer, model="m", template="t", sampling=Sampling(), messages=[], first=0)
        assert file.read_text() == text
    assert list(tmp_path.iterdir()) == [file]


def test_prompt_and_system_message(model: Path) -> None:
    """-p is the system message, as in bitnet.cpp; with -sys it is the first message."""
    size = len("\nsystem\nBe brief.\nuser\na\nassistant\n")
    assert objects(talk(model, "a\n", "--json", "-n", "1", "-p", "Be brief."))[0]["prompt_tokens"] == size + 5 - 1
    assert objects(talk(model, "", "--json", "-n", "1", "-sys", "Be brief.", "-p", "a"))[0]["prompt_tokens"] == size + 5 - 1


def test_commands(reciting: Path) -> None:
    lines = "/help\nhi\n/stats\n/set\n/set temp 0.5\n/set n 2\n/set n\n/system You are old.\n/system\nagain\n/clear\n/he\n/bye\nnever\n"
    done = talk(reciting, lines)
    assert done.stdout == "I know **one** answer.\nI know\n"
    for text in (
        "/retry",
        "Alt-Enter",
        "prompt   ",
        "of 2048 tokens, template chatml",
        "temperature        0.0",
        "temp is 0.5",
        "n is 2",
        "You are old.",
    ):
        assert text in done.stderr
    assert "cut off after 2 tokens" in done.stderr
    assert done.stderr.count("/bye") == 2


@pytest.mark.parametrize(
    ("line", "word"),
    [
        ("/nonsense", "no command /nonsense"),
        ("/s", "no command /s"),  # /save, /set, /stats, /system
        ("/set temp hot", "expected a number"),
        ("/set heat 1", "/set NAME VALUE"),
        ("/set temp -1", "temperature is -1.0"),
        ("/set n -2", "max-tokens"),
        ("/retry", "nothing to answer again"),
        ("/undo", "nothing to take back"),
        ("/save", "needs a name"),
        ("/load", "needs the name"),
        ("/load nonesuch", "nonesuch.json: No such file"),
        ("/save /nonexistent/x", "/nonexistent/x.json: No such file"),
    ],
)
def test_wrong_commands(opened: OpenModel, line: str, word: str) -> None:
    """In a script they are the end of it."""
    talk = Talk(opened, choose(opened.chat), Sampling(), Wishes())
    with pytest.raises(UsageError, match=re.escape(word)):
        talk.turn(line)
    assert talk.chat.messages == []


def test_what_is_no_command(opened: OpenModel) -> None:
    """A path, a comment in a program, several lines: messages."""
    for line in ("/", "/help", "/set temp 0.5", "/nonsense at all"):
        assert commands.is_command(line)
    for line in ("/usr/bin is full", "/* why? */", "//", "/help\nme", " /help"):
        assert not commands.is_command(line)
    talk = Talk(opened, choose(opened.chat), Sampling(temperature=0), Wishes(limit=1))
    assert talk.turn("/* why? */")
    assert talk.chat.messages[0].content == "/* why? */"


def test_a_retry_that_gives_nothing_keeps_the_old_answer(opened: OpenModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped while the message is read, or refused."""
    talk = Talk(opened, choose(opened.chat), Sampling(temperature=0), Wishes(limit=2))
    talk.on_terminal = True
    monkeypatch.setattr(talk, "_shown", Silent)
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True)
    talk.turn("hello")
    before = list(talk.chat.messages)
    assert len(before) == 2
    for error in (KeyboardInterrupt, ContextFullError, BitnetError):

        def nothing(*_: object, why: type[BaseException] = error, **__: object) -> Iterator[str]:
            raise why("why")
            yield ""

        monkeypatch.setattr(talk.chat, "answer", nothing)
        for line in ("/retry", "another"):
            assert talk.turn(line)
            assert talk.chat.messages == before


def test_a_wrong_command_ends_a_script(reciting: Path) -> None:
    done = talk(reciting, "/nonsense\nhello\n", code=2)
    assert "no command /nonsense" in done.stderr
    assert (done.stdout, done.stderr.count("\n")) == ("", 1)


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
def test_ctrl_c_ends_a_script(tmp_path: Path) -> None:
    """Exit code 130, and the answer as far as it came; the next line is not answered."""
    path = reciting_model(tmp_path / "endless.gguf", " ".join(f"w{i}" for i in range(300)) + " ", context=1 << 16, endless=True)
    command = [sys.executable, "-m", "bitnet_cli", "run", str(path), "-cnv", *GREEDY, "-c", "65536"]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, env=os.environ | {"BITNET_ISA": "naive"}, text=True, **pipes) as process:
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write("hello\nagain\n")
        process.stdin.flush()
        assert process.stdout.read(2) == "w0"
        process.send_signal(signal.SIGINT)
        rest, errors = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "Traceback" not in errors
    assert rest.endswith("\n") and rest.count("\n") == 1


def test_a_full_context(model: Path) -> None:
    lines = "".join(f"question {i}\n" for i in range(4))
    done = talk(model, lines, "--json", "-n", "4", "-c", "96")
    assert len(objects(done)) == 4
    assert "oldest messages are left out" in done.stderr
    done = talk(model, lines, "--json", "-n", "4", "-c", "96", "--no-context-shift", code=2)
    assert "the context holds 96" in done.stderr
    assert 1 < len(objects(done)) < 4


def test_a_base_model_says_what_it_is(tmp_path: Path) -> None:
    base = chat_model(tmp_path / "base.gguf", template=None)
    done = talk(base, "hello\n", "-n", "3", "--json")
    assert "no template: a base model" in done.stderr
    assert objects(done)[0]["prompt_tokens"] == len("User: hello\nAssistant:")


def test_templates_by_wish(model: Path, tmp_path: Path) -> None:
    file = tmp_path / "t.jinja"
    file.write_text("{% for m in messages %}<|im_start|>{{ m.content | trim }}{% endfor %}")
    done = talk(model, "hello <|im_end|>\n", "-n", "1", "--json", "--chat-template", str(file), "--verbose")
    assert objects(done)[0]["prompt_tokens"] == 1 + len("hello <|im_end|>")
    assert "chat format t.jinja: from" in done.stderr
    file.write_text("{{ raise_exception('no') }}")
    assert "refuses these messages: no" in talk(model, "hello\n", "--chat-template", str(file), code=3).stderr
    assert "built in are" in talk(model, "hello\n", "--chat-template", "nonesuch", code=2).stderr


def test_arguments_of_a_template(tmp_path: Path) -> None:
    path = chat_model(tmp_path / "m.gguf", template="{# <|im_start|> #}{{ messages[0].content }}{{ '!!' if not thinks }}{{ effort }}")
    flags = ("-n", "1", "--json", "--verbose")
    done = talk(path, "a\n", *flags, "--template-arg", "thinks=false", "--template-arg", "effort=<|im_end|>")
    assert objects(done)[0]["prompt_tokens"] == len("a!!<|im_end|>")
    assert "given arguments" in done.stderr
    assert objects(talk(path, "a\n", *flags, "--template-arg", "thinks=1"))[0]["prompt_tokens"] == len("a")
    assert "takes no arguments" in talk(path, "a\n", "--chat-template", "chatml", "--template-arg", "a=1", code=2).stderr
    assert "expected NAME=VALUE" in talk(path, "a\n", "--template-arg", "thinks", code=2).stderr


def test_arguments_are_for_a_chat() -> None:
    with pytest.raises(UsageError, match="add -cnv"):
        run("tiny", Prompt(text="a", raw=True, template_args=["a=1"]), Request(1), Sampling(), Options(), Show())
    with pytest.raises(UsageError, match="no chat template of its own"):
        run("tiny", Prompt(text="a", template_args=["a=1"]), Request(1), Sampling(), Options(), Show())


def test_a_saved_chat_with_tools(tokenizer: Tokenizer, tmp_path: Path) -> None:
    called = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f", "arguments": {}}}]}
    result = {"role": "tool", "content": "7", "tool_call_id": "1"}
    messages = [*checked_messages([{"role": "user", "content": "a"}, called, result]), Message("assistant", "b", (98,))]
    path = tmp_path / "c.json"
    files.save(path, tokenizer, model="m", template="model", sampling=Sampling(), messages=messages, first=0)
    assert files.load(path, tokenizer).messages == messages


def test_output_that_the_encoding_lacks(tmp_path: Path) -> None:
    path = reciting_model(tmp_path / "m.gguf", "caf\u00e9 \u4f60\u597d \x1b[31mred")
    assert talk(path, "x\n", PYTHONUTF8="0", PYTHONIOENCODING="ascii").stdout == "caf? ?? \x1b[31mred\n"


@pytest.mark.parametrize("understands", [True, False])
def test_a_console_of_windows_is_asked_for_escape_sequences(understands: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """By its two functions; an old one refuses, and gets the text as it is."""
    monkeypatch.setenv("TERM", "")
    asked = []

    class Kernel32:
        def GetStdHandle(self, number: int) -> int:  # noqa: N802
            return {-11: 7}[number]

        def GetConsoleMode(self, handle: int, mode: Any) -> int:  # noqa: N802
            mode[0] = 3
            return int(handle == 7)

        def SetConsoleMode(self, handle: int, mode: int) -> int:  # noqa: N802
            asked.append((handle, mode))
            return int(understands)

    assert moves("nt", Kernel32()) == understands
    assert asked == [(7, 3 | 4)]
    assert moves("posix")
    monkeypatch.setenv("TERM", "dumb")
    assert not moves("nt", Kernel32())
