"""What is known of a prompt is known to those with the same API key, and to nobody else."""

import itertools
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bitnet_cli.model.opening import OpenModel, Options, open_model
from bitnet_cli.serving.app import Settings
from bitnet_cli.serving.guard import Rules

from .serving import Running, running, until

ONE, OTHER = ({"Authorization": f"Bearer {name}-key-of-a-test"} for name in ("first", "second"))
FIRST = itertools.cycle("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz")


def roomy(path: Path) -> OpenModel:
    """With a cache for several texts, as the command opens a model."""
    opened = open_model(path, Options(threads=1, cache_tokens=4096))
    opened.engine.start()
    return opened


@pytest.fixture(scope="module")
def keyed() -> Iterator[Running]:
    with running(loader=roomy, settings=Settings(Rules(["first-key-of-a-test", "second-key-of-a-test"]))) as found:
        yield found


def prompt() -> str:
    """Some 200 tokens, of which the first is another one each time."""
    return f"{next(FIRST)}: " + " and ".join(f"word {i}" for i in range(40))


def completion(keyed: Running, text: str, headers: dict[str, str]) -> tuple[int, int, int]:
    """Tokens of the prompt, of these known before, and computed."""
    found = keyed.post("/v1/completions", {"prompt": text, "max_tokens": 2, "temperature": 0}, headers)
    known = found["usage"]["prompt_tokens_details"]["cached_tokens"]
    assert known == found["timings"]["cache_n"]
    return found["usage"]["prompt_tokens"], known, found["timings"]["prompt_n"]


def messages(keyed: Running, text: str, headers: dict[str, str]) -> tuple[int, int, int]:
    body = {"model": "m", "max_tokens": 2, "messages": [{"role": "user", "content": text}]}
    used = keyed.post("/v1/messages", body, headers)["usage"]
    known = used["cache_read_input_tokens"]
    return used["input_tokens"] + known, known, used["input_tokens"]


def response(keyed: Running, text: str, headers: dict[str, str]) -> tuple[int, int, int]:
    used = keyed.post("/v1/responses", {"input": text, "max_output_tokens": 16}, headers)["usage"]
    known = used["input_tokens_details"]["cached_tokens"]
    return used["input_tokens"], known, used["input_tokens"] - known


@pytest.mark.parametrize("ask", [completion, messages, response])
def test_a_prefix_is_known_within_a_key(keyed: Running, ask: Any) -> None:
    text = prompt()
    count, known, _ = ask(keyed, text, ONE)
    assert count > 100
    assert known <= count // 4  # what a chat format begins with, which earlier prompts had too
    # The last token of a prompt is always computed.
    assert ask(keyed, text, ONE) == (count, count - 1, 1)
    assert ask(keyed, text + " more", ONE)[1] >= count - 8  # of a chat, without what the format ends a message with


@pytest.mark.parametrize("ask", [completion, messages, response])
def test_another_key_learns_nothing(keyed: Running, ask: Any) -> None:
    """As many tokens are computed for a prompt that another key has sent as for one that nobody has: there is nothing to time."""
    ask(keyed, prompt(), OTHER)  # knows now what the format of a chat begins with
    for _ in range(3):
        secret, fresh = prompt(), prompt()
        ask(keyed, secret, ONE)
        (count, known, computed), (_, usual, _) = (ask(keyed, text, OTHER) for text in (secret, fresh))
        assert known == usual
        assert computed == count - known
        assert ask(keyed, secret, OTHER)[2] == 1  # its own


def test_a_prefix_in_use(keyed: Running) -> None:
    """While a text is written, its key's other requests share its pages; those of another key do not."""
    text, events = prompt(), list[Any]()
    body = {"prompt": text, "max_tokens": 250, "temperature": 0, "ignore_eos": True}
    writing = threading.Thread(target=lambda: events.extend(keyed.events("/v1/completions", body, ONE)))
    writing.start()
    worker = keyed.api.models.served[0].worker
    until(
        lambda: (
            worker is not None and worker._live and worker._live[0].ticket.work is not None and len(worker._live[0].ticket.work.ids) > 260
        )
    )
    count, known, _ = completion(keyed, text, ONE)
    hidden, usual = (completion(keyed, one, OTHER)[1] for one in (text, prompt()))
    writing.join()
    assert known == count - 1
    assert hidden == usual <= 1  # the begin token
    assert len(events) > 100


def larger(one: list[float], other: list[float]) -> float:
    """The share of pairs in which the second is the larger one: 0.5 where nothing tells them apart."""
    return sum((b > a) + (b == a) / 2 for a in one for b in other) / (len(one) * len(other))


@pytest.mark.slow
def test_no_time_tells_what_another_key_has_sent(keyed: Running) -> None:
    """Sixty prompts that the other key has sent, between sixty that nobody has. Of one's own the same measure tells at once."""
    tail = " and so on" * 60

    def seconds(text: str) -> float:
        start = time.perf_counter()
        completion(keyed, text, OTHER)
        return time.perf_counter() - start

    secrets, fresh, own = list[float](), list[float](), list[float]()
    for _ in range(60):
        secret, new = prompt() + tail, prompt() + tail
        completion(keyed, secret, ONE)
        secrets.append(seconds(secret))
        fresh.append(seconds(new))
        own.append(seconds(new))
    print(f"{larger(secrets, fresh):.2f} for another key, {larger(own, fresh):.2f} for one's own")
    assert larger(own, fresh) > 0.9
    assert 0.2 < larger(secrets, fresh) < 0.8  # 0.5, and six times its deviation of 0.05
