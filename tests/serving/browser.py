"""Headless Chromium, driven by the WebDriver protocol (W3C) over HTTP: what a test needs of it, and no more."""

import base64
import http.client
import json
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

DRIVER = shutil.which("chromedriver")
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--hide-scrollbars",
)
ELEMENT = "element-6066-11e4-a52e-4f735466cecf"  # by which the protocol marks an element
ENTER, ESCAPE, SHIFT = "\ue007", "\ue00c", "\ue008"


class Browser:
    """One window."""

    def __init__(self, port: int):
        self._port, self._session = port, ""

    def command(self, method: str, path: str, body: Any = None) -> Any:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=300)
        try:
            connection.request(
                method, self._session + path, None if body is None else json.dumps(body), {"content-type": "application/json"}
            )
            found = json.loads(connection.getresponse().read())["value"]
        finally:
            connection.close()
        if isinstance(found, dict) and "error" in found:
            raise RuntimeError(f"{found['error']}: {found['message'][:300]}")
        return found

    def begin(self, data: Path, downloads: Path) -> None:
        preferences = {"download.default_directory": str(downloads), "download.prompt_for_download": False}
        options = {"binary": CHROMIUM, "args": [*FLAGS, f"--user-data-dir={data}"], "prefs": preferences}
        wanted = {"browserName": "chrome", "goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}}
        found = self.command("POST", "/session", {"capabilities": {"alwaysMatch": wanted}})
        self._session = f"/session/{found['sessionId']}"

    def go(self, url: str) -> None:
        self.command("POST", "/url", {"url": url})

    def run(self, script: str, *arguments: Any) -> Any:
        """A function's body in the page; what it returns."""
        return self.command("POST", "/execute/sync", {"script": script, "args": list(arguments)})

    def find(self, selector: str) -> dict[str, str]:
        return dict(self.command("POST", "/element", {"using": "css selector", "value": selector}))

    def click(self, selector: str) -> None:
        self.command("POST", f"/element/{self.find(selector)[ELEMENT]}/click", {})

    def type(self, selector: str, text: str, *, clear: bool = False) -> None:
        element = self.find(selector)[ELEMENT]
        if clear:
            self.command("POST", f"/element/{element}/clear", {})
        self.command("POST", f"/element/{element}/value", {"text": text})

    def keys(self, text: str) -> None:
        """To whatever has the focus."""
        actions = [{"type": kind, "value": key} for key in text for kind in ("keyDown", "keyUp")]
        self.command("POST", "/actions", {"actions": [{"type": "key", "id": "keyboard", "actions": actions}]})

    def text(self, selector: str) -> list[str]:
        return list(self.run("return Array.from(document.querySelectorAll(arguments[0]), e => e.innerText)", selector))

    def size(self, width: int, height: int) -> None:
        self.command("POST", "/goog/cdp/execute", {"cmd": "Emulation.setDeviceMetricsOverride", "params": {
            "width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 700}})  # fmt: skip

    def prefers(self, scheme: str) -> None:
        """dark or light, as the system says."""
        feature = {"name": "prefers-color-scheme", "value": scheme}
        self.command("POST", "/goog/cdp/execute", {"cmd": "Emulation.setEmulatedMedia", "params": {"features": [feature]}})

    def picture(self, path: Path) -> None:
        path.write_bytes(base64.b64decode(self.command("GET", "/screenshot")))

    def faults(self) -> list[str]:
        """What the console has since the last call, but for what is only said."""
        return [
            entry["message"] for entry in self.command("POST", "/se/log", {"type": "browser"}) if entry["level"] in ("SEVERE", "WARNING")
        ]

    def until(self, true: Callable[[], Any], seconds: float = 20.0) -> Any:
        end = time.monotonic() + seconds
        while not (found := true()):
            assert time.monotonic() < end, self.text("body")
            time.sleep(0.03)
        return found


@contextmanager
def browsing(folder: Path) -> Iterator[Browser]:
    assert DRIVER is not None
    process = subprocess.Popen([DRIVER, "--port=0"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        assert process.stdout is not None
        port = next(int(line.split("port ")[1].rstrip(".\n")) for line in process.stdout if "started successfully on port" in line)
        browser = Browser(port)
        browser.begin(folder / "data", folder / "downloads")
        try:
            yield browser
        finally:
            browser.command("DELETE", "")
    finally:
        process.terminate()
        process.wait(20)
        assert process.stdout is not None
        process.stdout.close()
