"""The page in a browser: what a user does with it, what a model cannot do to it, and how it looks (pictures in pytest's folder)."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bitnet_cli.serving.jobs import Job

from .browser import CHROMIUM, DRIVER, ENTER, ESCAPE, Browser, browsing
from .serving import Running, load, running
from .told import ToldWorker

pytestmark = pytest.mark.skipif(
    not (DRIVER and CHROMIUM), reason="Chromium and its driver are not installed (Debian: chromium, chromium-driver)"
)

EVIL = """# Title
<script>window.evil = 1</script><img src=x onerror="window.evil = 2"> [a](javascript:window.evil=3) [b](https://example.org/x "t")
![c](https://example.org/y.png) <iframe srcdoc="<script>parent.evil=4</script>"></iframe> **bold** `<b>`
[d](data:text/html,<script>window.evil=5</script>) [e]( javascript:window.evil=6) <a href="javascript:window.evil=7">f</a>

- one
- two
  1. inner

> quote

| x | y |
|---|---|
| 1 | <svg onload=window.evil=8> |

```html
<script>window.evil = 9</script>
```
"""
SLOW = "This answer takes a while, so that there is time to stop it. " * 40


def say(job: Job) -> tuple[str, float]:
    asked = WORKERS[-1].opened.tokenizer.decode(job.prompt)
    last = asked.rsplit("User: ", 1)[-1]
    if "evil" in last:
        return EVIL, 0
    if "slow" in last:
        return SLOW, 0.02
    return f"Answer {len(WORKERS[-1].jobs)}.", 0


WORKERS: list[ToldWorker] = []


def worker(opened: Any) -> ToldWorker:
    WORKERS.append(ToldWorker(opened, say))
    return WORKERS[-1]


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with running(loader=load, worker=worker) as found:
        yield found


@pytest.fixture(scope="module")
def window(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with browsing(tmp_path_factory.mktemp("browser")) as browser:
        yield browser


@pytest.fixture
def browser(window: Browser, server: Running) -> Browser:
    window.size(1200, 800)
    window.go(server.url + "/")
    window.run("localStorage.clear()")
    window.go(server.url + "/")
    window.until(lambda: window.run("return document.getElementById('context-text').innerText.includes('of')"))
    window.faults()
    return window


def send(browser: Browser, text: str) -> None:
    browser.type("#prompt", text + ENTER)


def answered(browser: Browser, count: int = 1) -> list[str]:
    """Texts of the answers, once there are so many and none is being written."""
    browser.until(
        lambda: len(browser.text("article.assistant .text")) >= count and browser.run("return document.getElementById('stop').hidden")
    )
    return browser.text("article.assistant .text")


def test_a_chat_that_stays(browser: Browser) -> None:
    send(browser, "Hello you")
    (first,) = answered(browser)
    assert first.startswith("Answer ")
    assert browser.text("article.user .text") == ["Hello you"]
    assert "tokens/s" in browser.text("article.assistant .stats")[0]
    assert browser.text("#context-text")[0].split()[1] != "0"
    send(browser, "And again")
    assert answered(browser, 2)[0] == first
    browser.command("POST", "/refresh", {})
    assert answered(browser, 2)[0] == first
    assert browser.text("#title") == ["Hello you"]
    assert browser.run("return document.activeElement.id") == "prompt"
    assert browser.faults() == []


def test_stop(browser: Browser) -> None:
    send(browser, "slow please")
    browser.until(lambda: "takes a while" in "".join(browser.text("article.assistant .text")))
    browser.click("#stop")
    text = answered(browser)[0]
    assert 10 < len(text) < len(SLOW) - 20
    browser.until(lambda: WORKERS[-1].told[-1].cancelled)
    assert browser.text("#status") == ["Stopped."]
    send(browser, "slow again")
    browser.until(lambda: len(browser.text("article.assistant .text")) == 2)
    browser.keys(ESCAPE)
    browser.until(lambda: WORKERS[-1].told[-1].cancelled)
    answered(browser, 1)


def test_retry_edit_and_branches(browser: Browser) -> None:
    send(browser, "First")
    (one,) = answered(browser)
    browser.click("article.assistant [title='Write another answer']")
    browser.until(lambda: browser.text("article.assistant .tools span[aria-label]") == ["2/2"])
    (two,) = answered(browser)
    assert two != one
    browser.click("article.assistant [title='Earlier version']")
    assert answered(browser) == [one]
    browser.click("article.user [title='Edit this message']")
    assert browser.run("return document.activeElement.value") == "First"
    browser.type("article.user textarea", "Other" + ENTER, clear=True)
    browser.until(lambda: browser.text("article.user .text") == ["Other"])
    (three,) = answered(browser)
    assert three not in (one, two)
    asked = WORKERS[-1].opened.tokenizer.decode(WORKERS[-1].jobs[-1].prompt)
    assert "Other" in asked and "First" not in asked
    browser.click("article.user [title='Earlier version']")
    browser.until(lambda: browser.text("article.user .text") == ["First"])
    assert browser.text("article.assistant .tools span[aria-label]") == ["2/2"]  # the newest branch
    browser.command("POST", "/refresh", {})
    browser.until(lambda: browser.text("article.user .text") == ["First"])


def test_settings(browser: Browser) -> None:
    browser.click("#open-settings")
    browser.type("[name=system]", "Be a pirate.")
    browser.type("[name=temperature]", "0.25")
    browser.type("[name=seed]", "42")
    browser.type("[name=schema]", "{")
    browser.click("#settings-form [value=keep]")
    assert "not JSON" in browser.text("#schema-fault")[0]
    schema = '{"type": "object", "properties": {"a": {"type": "integer"}}}'
    browser.type("[name=schema]", schema, clear=True)
    browser.click("#settings-form [value=keep]")
    browser.until(lambda: not browser.run("return document.getElementById('settings').open"))
    send(browser, "Go")
    answered(browser)
    job = WORKERS[-1].jobs[-1]
    assert "Be a pirate." in WORKERS[-1].opened.tokenizer.decode(job.prompt)
    assert (job.sampling.temperature, job.sampling.seed) == (0.25, 42)
    assert job.grammar is not None and "integer" in job.grammar


def test_a_model_cannot_do_anything_to_the_page(browser: Browser, server: Running) -> None:
    send(browser, "evil")
    answered(browser)
    browser.until(lambda: browser.text("article.assistant h3") == ["Title"])
    assert browser.run("return document.querySelectorAll('#messages script, #messages img, #messages iframe, #messages svg').length") == 0
    links = browser.run("return Array.from(document.querySelectorAll('#messages a'), a => [a.protocol, a.rel, a.target])")
    assert links == [["https:", "noopener noreferrer nofollow", "_blank"]] * 2
    for text in ("[a]", "javascript:window.evil=3", "<script>window.evil = 1</script>", "<b>"):
        assert text.strip("[]") in browser.text("article.assistant .text")[0]
    assert browser.text("article.assistant pre code") == ["<script>window.evil = 9</script>"]
    assert browser.text("article.assistant li li") == ["inner"]
    assert browser.text("article.assistant td")[0] == "1"
    for element in range(browser.run("return document.querySelectorAll('article.assistant .text *').length")):
        browser.run(
            "document.querySelectorAll('article.assistant .text *')[arguments[0]].dispatchEvent(new MouseEvent('mouseover'))", element
        )
    assert browser.run("return window.evil ?? null") is None
    # Not even what gets into the page runs.
    browser.run("const s = document.createElement('script'); s.textContent = 'window.evil = 10'; document.body.append(s)")
    browser.run(
        "const d = document.createElement('div'); d.innerHTML = '<img src=x onerror=\"window.evil = 11\">'; document.body.append(d)"
    )
    assert browser.run("return window.evil ?? null") is None
    assert browser.run("return fetch('https://example.org/').then(() => 'sent', () => 'refused')") == "refused"


def test_export_and_import(browser: Browser, tmp_path: Path) -> None:
    send(browser, "Keep me")
    (text,) = answered(browser)
    saved = browser.run("return localStorage.getItem('bitnet.chats')")
    chats = json.loads(saved)
    chats[0]["nodes"]["x"] = {"role": "wizard", "content": "no"}
    chats[0]["evil"] = "<img src=x onerror=alert(1)>"
    chats.append(
        {"nodes": {"a": {"role": "user", "content": "loop", "parent": "b"}, "b": {"role": "user", "content": "loop", "parent": "a"}}}
    )
    file = tmp_path / "chats.json"
    file.write_text(json.dumps(chats))
    browser.run("localStorage.clear()")
    browser.command("POST", "/refresh", {})
    assert browser.text("article") == []
    browser.run("document.getElementById('file').hidden = false")
    browser.type("#file", str(file))
    assert answered(browser) == [text]
    after = json.loads(browser.run("return localStorage.getItem('bitnet.chats')"))
    assert "evil" not in after[0] and "x" not in after[0]["nodes"] and len(after) == 2
    file.write_text("{")
    browser.run("document.getElementById('file').hidden = false")
    browser.type("#file", str(file))
    browser.until(lambda: "cannot be imported" in browser.text("#status")[0])


def test_export_writes_a_file(browser: Browser, tmp_path: Path) -> None:
    """In the browser's own folder for downloads; and what it writes, it reads."""
    send(browser, "Export me")
    answered(browser)
    folder = tmp_path / "downloads"
    browser.command("POST", "/goog/cdp/execute", {"cmd": "Browser.setDownloadBehavior", "params": {
        "behavior": "allow", "downloadPath": str(folder)}})  # fmt: skip
    browser.run("document.getElementById('export').click()")
    file = folder / "bitnet-chats.json"
    browser.until(file.exists)
    (chat,) = json.loads(file.read_text())
    assert next(iter(chat["nodes"].values()))["content"] == "Export me"


def test_it_needs_nothing_but_its_server(browser: Browser, server: Running) -> None:
    """Every file of it comes from there, and its policy lets nothing else in; what is said stays in the browser."""
    send(browser, "Hello")
    answered(browser)
    names = browser.run("return performance.getEntriesByType('resource').map(e => e.name)")
    assert len(names) > 4 and all(name.startswith(server.url + "/") for name in names)
    policy = server.ask("GET", "/")[1]["content-security-policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy and "http" not in policy
    assert browser.run("return document.cookie") == ""
    assert browser.run("return Object.keys(localStorage).length") > 0


def test_errors_are_said(browser: Browser, server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server.api.gate, "most", 0)
    send(browser, "Too many")
    browser.until(lambda: "ask again" in browser.text("#status")[0])
    assert browser.run("return document.getElementById('status').className") == "fault"
    assert browser.text("article.assistant") == []
    monkeypatch.undo()
    browser.run("document.getElementById('form').requestSubmit()")
    assert browser.text("article.user .text") == ["Too many"]


def test_names_for_screen_readers(browser: Browser) -> None:
    send(browser, "Hello")
    answered(browser)
    nameless = browser.run(
        """const named = e => e.getAttribute('aria-label') || e.innerText?.trim() || e.labels?.length;
        return Array.from(document.querySelectorAll('button, input, textarea, select, meter'))
        .filter(e => e.getClientRects().length && !named(e)).map(e => e.outerHTML)"""
    )
    assert nameless == []
    roles = browser.run(
        "return ['main', 'nav', 'header', '[role=log]', '[role=status]', 'h1'].map(s => document.querySelectorAll(s).length)"
    )
    assert roles == [1] * 6


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1200, 400, 320])
def test_it_fits(browser: Browser, scheme: str, width: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Nothing is wider than the window, and text stands out from what is behind it: 4.5 to 1 (WCAG 2.2, 1.4.3)."""
    browser.prefers(scheme)
    browser.size(width, 700)
    send(browser, "evil " + "long" * 60)
    answered(browser)
    browser.run("document.getElementById('messages').scrollTop = 0")
    folder = tmp_path_factory.getbasetemp() / "pictures"
    folder.mkdir(exist_ok=True)
    browser.picture(folder / f"{scheme}-{width}.png")
    assert browser.run("return document.documentElement.scrollWidth") <= width
    assert (
        browser.run("return Math.max(...Array.from(document.querySelectorAll('main *'), e => e.getBoundingClientRect().right))")
        <= width + 1
        or width < 1200
    )
    low = browser.run(CONTRAST)
    assert low == []
    if width < 700:
        browser.click("#open-side")
        browser.picture(folder / f"{scheme}-{width}-side.png")
        browser.keys(ESCAPE)
        assert browser.run("return document.activeElement.id") == "open-side"
    browser.click("#open-settings")
    browser.picture(folder / f"{scheme}-{width}-settings.png")
    browser.keys(ESCAPE)


CONTRAST = """
const linear = v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
const light = c => {
  const [r, g, b] = c.match(/[\\d.]+/g).map(v => linear(v / 255));
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
};
const behind = e => {
  for (; e; e = e.parentElement) {
    const c = getComputedStyle(e).backgroundColor;
    if (!/, 0\\)$|transparent/.test(c)) return c;
  }
  return 'rgb(255, 255, 255)';
};
const speaks = e => e.getClientRects().length && !e.disabled && Array.from(e.childNodes).some(n => n.nodeType === 3 && n.data.trim());
const ratio = e => {
  const [a, b] = [light(getComputedStyle(e).color), light(behind(e))].sort((x, y) => y - x);
  return (a + 0.05) / (b + 0.05);
};
return Array.from(document.querySelectorAll('body *')).filter(e => speaks(e) && ratio(e) < 4.5).map(e => [ratio(e), e.outerHTML]);
"""
