"""A hub on this machine: the few answers of huggingface.co that huggingface_hub needs to list and download a model's files.

Answers written after huggingface_hub 2.4 (utils/_http.py, file_download.py): GET /api/models/ID/revision/REV for the list of files,
HEAD and GET /ID/resolve/REV/FILE for a file with its commit and etag in headers, X-Error-Code for what is refused.
"""

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Repo:
    """`refuse_files`: status and X-Error-Code for every file. `cut`: the answers about a file break off after so many bytes, one each."""

    files: dict[str, bytes]
    revisions: tuple[str, ...] = ("main", COMMIT)
    token: str | None = None
    refuse_files: tuple[int, str] | None = None
    cut: dict[str, list[int]] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)  # where the list of files tells another size
    lfs: dict[str, object] = field(default_factory=dict)  # SHA-256 that the list of files tells of a file
    headers: dict[str, str] = field(default_factory=dict)  # of every answer about a file, in place of others
    commit: object = COMMIT  # as the list of files tells it


@dataclass
class Hub:
    repos: dict[str, Repo] = field(default_factory=dict)
    requests: list[tuple[str, str, str | None]] = field(default_factory=list)  # method, path, Range
    status: int = 0  # answer everything with it
    url: str = ""

    def fetched(self) -> list[str]:
        """Names of the files that were downloaded, in order, each as often as it was."""
        return [path.rsplit("/", 1)[-1] for method, path, _ in self.requests if method == "GET" and "/resolve/" in path]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *_: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append((self.command, path, self.headers.get("Range")))
        if self.hub.status:
            return self._refuse(self.hub.status, "")
        parts = path.strip("/").split("/")
        api = parts[:2] == ["api", "models"]
        name = "/".join(parts[2:4] if api else parts[:2])
        repo = self.hub.repos.get(name)
        if repo is None or (repo.token and self.headers.get("Authorization") != f"Bearer {repo.token}"):
            return self._refuse(401, "RepoNotFound")
        if (parts[5] if api else parts[3]) not in repo.revisions:
            return self._refuse(404, "RevisionNotFound")
        if api:
            siblings: list[dict[str, Any]] = [
                {"rfilename": n, "size": repo.sizes.get(n, len(d)), "blobId": sha(d)[:40]} for n, d in repo.files.items()
            ]
            for item in siblings:
                if item["rfilename"] in repo.lfs:
                    item["lfs"] = {"sha256": repo.lfs[item["rfilename"]], "size": item["size"], "pointerSize": 130}
            return self._send(json.dumps({"_id": "1", "id": name, "sha": repo.commit, "siblings": siblings}).encode(), {})
        if repo.refuse_files:
            return self._send(b"{}", {"X-Error-Code": repo.refuse_files[1]} | repo.headers, repo.refuse_files[0])
        return self._file(repo, "/".join(parts[4:]))

    def _file(self, repo: Repo, file: str) -> None:
        data = repo.files.get(file)
        if data is None:
            return self._refuse(404, "EntryNotFound")
        headers = {"ETag": f'"{sha(data)}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"} | repo.headers
        start = int((self.headers.get("Range") or "bytes=0-").removeprefix("bytes=").split("-")[0])
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        cuts = repo.cut.get(file, []) if self.command == "GET" else []
        return self._send(data[start:], headers, 206 if start else 200, cuts.pop(0) if cuts else None)

    def _send(self, body: bytes, headers: dict[str, str], status: int = 200, cut: int | None = None) -> None:
        self.send_response(status)
        for key, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body[:cut])
        if cut is not None:
            self.close_connection = True

    def _refuse(self, status: int, code: str) -> None:
        self._send(b"{}", {"X-Error-Code": code} if code else {}, status)


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@contextmanager
def serve() -> Iterator[Hub]:
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("OwnHandler", (Handler,), {"hub": hub}))
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    hub.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
