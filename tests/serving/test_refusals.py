"""Requests that are wrong, from the wrong place, too large or too slow. Each is refused by name, and hurts no other."""

import contextlib
import http.client
import json
import socket
from typing import Any

import pytest

from bitnet_cli.model.sampling import Sampling
from bitnet_cli.serving import guard, server
from bitnet_cli.serving.app import Settings
from bitnet_cli.serving.errors import ApiError
from bitnet_cli.serving.guard import Rules
from bitnet_cli.serving.schema import sampling_of

from .serving import JSON, Running, running, until

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
HI = [{"role": "user", "content": "Hi"}]
NAN = float("nan")


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"temperature": -1}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"temperature": True}, "temperature"),
        ({"top_p": 2}, "top_p"),
        ({"top_p": 1e400}, None),  # Infinity, which is no JSON
        ({"top_k": 1.5}, "top_k"),
        ({"seed": 2**64}, "seed"),
        ({"max_tokens": -2}, "max_tokens"),
        ({"max_tokens": "5"}, "max_tokens"),
        ({"n": 0}, "n"),
        ({"n": 10**9}, "n"),
        ({"stop": ""}, "stop"),
        ({"stop": ["a"] * 5}, "stop"),
        ({"stop": [1]}, "stop"),
        ({"logprobs": 100}, "logprobs"),
        ({"best_of": 3}, "best_of"),
        ({"stream": "yes"}, "stream"),
        ({"logit_bias": {"-1": 1}}, "logit_bias"),
        ({"logit_bias": {"999999": 1}}, "logit_bias"),
        ({"logit_bias": {"5": 1000}}, "logit_bias"),
        ({"logit_bias": {"5": None}}, "logit_bias"),
        ({"logit_bias": [1]}, "logit_bias"),
        ({"prompt": None}, "prompt"),
        ({"prompt": 5}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": [[]]}, "prompt[0]"),
        ({"prompt": [-1]}, "prompt[0]"),
        ({"prompt": [4096]}, "prompt[0]"),
        ({"prompt": [2**70]}, "prompt[0]"),
        ({"prompt": [[1, 2.0]]}, "prompt[0]"),
        ({"prompt": [[True]]}, "prompt[0]"),
        ({"prompt": ["a"] * 129}, "prompt"),
        ({"response_format": {"type": "xml"}}, "response_format"),
        ({"response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "nothing"}}}}, "response_format"),
        ({"regex": "(", "max_tokens": 3}, "regex"),
        ({"mirostat": 1}, "mirostat"),
    ],
    ids=str,
)
def test_wrong_completions(tiny: Running, fields: dict[str, Any], param: str | None) -> None:
    assert tiny.refused(TEXT, {"prompt": "a", "max_tokens": 1, **fields})["param"] == param


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"messages": []}, "messages"),
        ({"messages": None}, "messages"),
        ({"messages": "Hi"}, "messages"),
        ({"messages": [{"role": "wizard", "content": "x"}]}, "messages"),
        ({"messages": [{"role": "user"}]}, "messages"),
        ({"messages": [*HI, {"role": "assistant", "content": "x"}]}, "messages"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]}, "messages"),
        ({"messages": [*HI, {"role": "assistant", "tool_calls": [{"function": {}}]}]}, "messages"),
        ({"messages": [*HI, {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{"}}]}]}, "messages"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"tools": [{"type": "retrieval"}]}, "tools"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools"),
        ({"tools": [{"type": "function", "function": {"name": "a", "parameters": {"type": 5}}}]}, "tools"),
        ({"tools": [{"type": "function", "function": {"name": "a"}}] * 2}, "tools"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tool_choice": {"type": "function", "function": {"name": "x"}}}, "tool_choice"),
        ({"functions": [{}]}, "functions"),
        ({"modalities": ["audio"]}, "modalities"),
    ],
    ids=str,
)
def test_wrong_chats(tiny: Running, fields: dict[str, Any], param: str) -> None:
    assert tiny.refused(CHAT, {"messages": HI, "max_tokens": 1, **fields})["param"] == param


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'"a"',
        b'{"prompt": "a", "prompt": "b"}',
        b'{"a": NaN}',
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b"1" * 10_000,
    ],
    ids=lambda body: repr(body[:12]),
)
def test_bodies_that_are_no_json(tiny: Running, body: bytes) -> None:
    assert tiny.refused(TEXT, body)["type"] == "invalid_request_error"


def test_prompts_that_do_not_fit(tiny: Running) -> None:
    context = tiny.get("/props")["n_ctx"]
    error = tiny.refused(TEXT, {"prompt": [5] * context, "max_tokens": 1})
    assert error["code"] == "context_length_exceeded"
    assert str(context) in error["message"]
    found = tiny.post(TEXT, {"prompt": [5] * (context - 2), "max_tokens": 50, "ignore_eos": True})
    assert found["usage"]["completion_tokens"] in (2, 3)  # the last token needs no place
    assert found["choices"][0]["finish_reason"] == "length"
    assert tiny.refused(CHAT, {"messages": [{"role": "user", "content": "a b " * context}]})["code"] == "context_length_exceeded"
    assert tiny.post(TEXT, {"prompt": [5] * context, "max_tokens": 0, "echo": True, "logprobs": 0})["usage"]["prompt_tokens"] == context


def test_names_that_are_not_the_servers(tiny: Running) -> None:
    for host in ("evil.com", "evil.com:80", "127.0.0.1.evil.com", "localhost.evil.com", "10.0.0.1", ""):
        assert tiny.ask("GET", "/", None, {"Host": host})[0] == 403, host
    for host in ("localhost", "LOCALHOST:1", "127.0.0.1", "[::1]:8080", "localhost."):
        assert tiny.ask("GET", "/health", None, {"Host": host})[0] == 200, host


def test_pages_of_other_sites(tiny: Running) -> None:
    body = {"prompt": "a", "max_tokens": 1}
    assert tiny.refused(TEXT, body, {"Origin": "https://evil.com"}, 403)["code"] == "origin_not_allowed"
    assert tiny.refused(TEXT, body, {"Origin": "null"}, 403)["code"] == "origin_not_allowed"
    # What a form can send without a question to the server:
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "text/plain; application/json"):
        assert tiny.refused(TEXT, body, {"content-type": kind}, 415)["code"] == "unsupported_media_type"
    before = tiny.api.gate.inside
    assert tiny.ask("OPTIONS", TEXT, None, {"Origin": "https://evil.com", "Access-Control-Request-Method": "POST"})[0] == 403
    assert tiny.api.gate.inside == before
    status, headers, _ = tiny.ask("POST", TEXT, body, {"Origin": tiny.url})
    assert status == 200
    assert not [name for name in headers if name.startswith("access-control")]


def test_a_site_that_is_allowed() -> None:
    rules = Rules(hosts=["bitnet.example"], origins=["https://friend.example"])
    with running(settings=Settings(rules)) as found:
        asking = {"Origin": "https://friend.example", "Access-Control-Request-Method": "POST"}
        status, headers, _ = found.ask("OPTIONS", TEXT, None, asking)
        assert status == 204 and headers["access-control-allow-origin"] == "https://friend.example"
        status, headers, _ = found.ask("GET", "/v1/models", None, asking)
        assert status == 200 and headers["access-control-allow-origin"] == "https://friend.example"
        assert headers["vary"].lower() == "origin"
        assert found.ask("GET", "/v1/models", None, {"Origin": "https://friend.example.evil.com"})[0] == 403
        assert found.ask("GET", "/v1/models", None, {"Host": "bitnet.example:443"})[0] == 200


def test_keys(capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG")
    good, other = "first-key-of-a-test", "second-key-of-a-test"
    with running(settings=Settings(Rules([good, other]))) as found:
        body = {"prompt": "A secret prompt of nobody", "max_tokens": 1}
        for path in ("/health", "/"):
            assert found.ask("GET", path)[0] == 200
        for path in ("/v1/models", "/props", "/metrics", "/tokenizer_info"):
            assert found.ask("GET", path)[0] == 401
        assert found.refused(TEXT, body, status=401)["type"] == "authentication_error"
        assert found.refused(TEXT, body, {"Authorization": "Bearer wrong-key-of-a-test"}, 401)["code"] == "invalid_api_key"
        assert found.refused(TEXT, body, {"Authorization": f"Basic {good}"}, 401)["code"] == "missing_api_key"
        for headers in ({"Authorization": f"Bearer {good}"}, {"authorization": f"bearer {other}"}, {"x-api-key": other}):
            found.post(TEXT, body, headers)
    said = caplog.text + "".join(capfd.readouterr())
    assert "POST /v1/completions 200" in said
    for secret in (good, other, "wrong-key", "secret prompt"):
        assert secret not in said


@pytest.mark.parametrize("key", ["first-key-of-a-test", "second-key-of-a-test", "first-key-of-a-tesx", "x", ""])
def test_keys_are_compared_in_constant_time(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With all of them, as digests of one length, by the function that is made for it."""
    compared = []

    def digest(one: bytes, other: bytes) -> bool:
        compared.append((len(one), len(other)))
        return one == other

    monkeypatch.setattr(guard.hmac, "compare_digest", digest)
    keys = ["first-key-of-a-test", "second-key-of-a-test"]
    assert Rules(keys).accepts(key) == (key in keys)
    assert compared == [(32, 32)] * 2


def test_lines_of_the_log_are_lines(tiny: Running, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "bitnet.serve")
    tiny.ask("GET", "/%0aINFO%20forged%1b[31m" + "x" * 5000)
    lines: list[str] = []

    def written() -> bool:  # after the answer was sent, so perhaps after it came
        lines[:] = [record.getMessage() for record in caplog.records if "forged" in record.getMessage()]
        return bool(lines)

    until(written)
    (line,) = lines
    assert "\n" not in line and "\x1b" not in line and len(line) < 400


def test_large_and_slow_bodies(tiny: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", tiny.port, timeout=20)
    connection.request("POST", TEXT, None, {**JSON, "content-length": str(1 << 30)})
    assert connection.getresponse().status == 413
    connection.close()
    data = b'{"prompt": "' + b"a" * (guard.LARGEST_BODY + 10) + b'"}'
    with socket.create_connection(("127.0.0.1", tiny.port), timeout=20) as raw:  # chunked: no length is known before
        raw.sendall(
            b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
        )
        try:
            for start in range(0, len(data), 1 << 16):
                part = data[start : start + (1 << 16)]
                raw.sendall(b"%x\r\n%s\r\n" % (len(part), part))
            raw.sendall(b"0\r\n\r\n")
        except OSError:
            pass
        assert b" 413 " in raw.recv(100)
    monkeypatch.setattr(guard, "BODY_SECONDS", 0.2)
    with socket.create_connection(("127.0.0.1", tiny.port), timeout=20) as raw:
        raw.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 50\r\n\r\n{")
        assert b" 408 " in raw.recv(100)
    assert tiny.post(TEXT, {"prompt": "a", "max_tokens": 1})["usage"]["completion_tokens"] == 1


def test_headers_that_do_not_end(tiny: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_connection(("127.0.0.1", tiny.port), timeout=20) as raw:
        raw.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"a" * (server.LARGEST_HEADER + 100))
        assert b" 400 " in raw.recv(100)
    monkeypatch.setattr(server, "HEADER_SECONDS", 0.2)
    for said in (b"", b"GET / HT", b"GET / HTTP/1.1\r\nHost: localhost\r\nX-Slow: "):
        with socket.create_connection(("127.0.0.1", tiny.port), timeout=20) as raw:
            if said:
                raw.sendall(said)
            with contextlib.suppress(ConnectionResetError):
                assert raw.recv(100) == b""


def test_a_request_that_fails_hurts_no_other(tiny: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    from bitnet_cli.serving import worker

    def broken(*_: Any) -> Any:
        raise RuntimeError("a fault with the text of somebody")

    with monkeypatch.context() as patch:
        patch.setattr(worker, "Sampler", broken)
        error = tiny.refused(TEXT, {"prompt": "a", "max_tokens": 1}, status=500)
        assert "somebody" not in json.dumps(error)
        streamed = tiny.events(TEXT, {"prompt": "a", "max_tokens": 1})
        assert streamed[-1]["error"]["type"] == "server_error"
    assert tiny.post(TEXT, {"prompt": "a", "max_tokens": 1})["usage"]["completion_tokens"] == 1


def test_addresses_that_are_none(tiny: Running) -> None:
    for method, path, status in (
        ("GET", "/nothing", 404),
        ("GET", TEXT, 405),
        ("GET", "/../../etc/passwd", 404),
        ("GET", "/page.css/..", 404),
    ):
        found, headers, data = tiny.ask(method, path)
        assert found == status
        assert json.loads(data)["error"]["message"]
        assert headers["x-request-id"]


def test_how_tokens_are_chosen_has_the_ranges_of_run() -> None:
    """And names of others' servers: an error names the field that was given."""
    found = sampling_of({"repetition_penalty": 1.25, "top_k": -1, "temperature": None, "seed": 3.0}, 100)
    assert found == Sampling(repeat_penalty=1.25, top_k=0, seed=3)
    assert sampling_of({"repetition_penalty": 1.25, "repeat_penalty": 1.5}, 100).repeat_penalty == 1.5
    for field, wrong in (("repetition_penalty", 1000), ("repeat_penalty", 0), ("top_p", 1.1), ("seed", 2**63 - 1), ("mirostat_tau", -1)):
        with pytest.raises(ApiError, match=f"^{field} is "):
            sampling_of({field: wrong}, 100)
