"""A small model hub on this machine: as much of the real one's protocol as uploading and fetching small files takes."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import huggingface_hub
import pytest
from huggingface_hub import constants

TOKEN = "hf_of_the_test"


class Repository:
    """Commits of a repository, the last one last: the files by their paths."""

    def __init__(self, private: bool):
        self.private = private
        self.commits: list[tuple[str, str, dict[str, bytes]]] = []

    def commit(self, message: str, files: dict[str, bytes]) -> str:
        before = self.commits[-1][2] if self.commits else {}
        now = {**before, **files}
        oid = hashlib.sha1(repr((len(self.commits), sorted(now.items()))).encode()).hexdigest()
        self.commits.append((oid, message, now))
        return oid

    def files(self, revision: str = "main") -> tuple[str, dict[str, bytes]]:
        found = [commit for commit in self.commits if revision in ("main", commit[0])]
        if not found:
            raise KeyError(revision)
        return found[-1][0], found[-1][2]


class FakeHub:
    """The repositories by name, and what was asked for."""

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.asked: list[str] = []
        self.refuses = False
        self.address = ""


class _Handler(BaseHTTPRequestHandler):
    hub: FakeHub

    def log_message(self, *_: Any) -> None:
        pass

    def _say(self, code: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(code)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", headers.get("Length", str(len(body))))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _json(self, value: Any, code: int = 200) -> None:
        self._say(code, json.dumps(value).encode(), Content_Type="application/json")

    def _missing(self, kind: str) -> None:
        self._say(404, b"{}", X_Error_Code=kind, X_Error_Message="not found")

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = urlsplit(self.path).path
        self.hub.asked.append(f"POST {path}")
        if path == "/api/validate-yaml":
            self._json({"errors": [], "warnings": []})
        elif self.hub.refuses or self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self._say(403, b"{}", X_Error_Message="Forbidden: you may not write here")
        elif path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked['organization']}/{asked['name']}"
            code = 409 if name in self.hub.repositories else 200
            self.hub.repositories.setdefault(name, Repository(asked.get("visibility") == "private"))
            self._json({"url": f"{self.hub.address}/{name}", "name": name}, code)
        else:
            user, name, verb, _ = path.removeprefix("/api/models/").split("/")
            if verb == "preupload":
                files = json.loads(body)["files"]
                self._json(
                    {"files": [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in files]}
                )
            else:
                lines = [json.loads(line) for line in body.splitlines()]
                files = {f["value"]["path"]: f["value"] for f in lines if f["key"] == "file"}
                contents = {path: base64.b64decode(value["content"]) for path, value in files.items()}
                message = next(line["value"]["summary"] for line in lines if line["key"] == "header")
                oid = self.hub.repositories[f"{user}/{name}"].commit(message, contents)
                url = f"{self.hub.address}/{user}/{name}/commit/{oid}"
                self._json({"success": True, "commitOid": oid, "commitUrl": url})

    def do_GET(self) -> None:
        parts = [unquote(part) for part in urlsplit(self.path).path.strip("/").split("/")]
        self.hub.asked.append(f"{self.command} /{'/'.join(parts)}")
        api = parts[:2] == ["api", "models"]
        user, name, *rest = parts[2:] if api else parts
        try:
            repository = self.hub.repositories[f"{user}/{name}"]
        except KeyError:
            self._missing("RepoNotFound")
            return
        try:
            oid, files = repository.files(rest[1] if len(rest) > 1 else "main")
        except KeyError:
            self._missing("RevisionNotFound")
            return
        if not api:
            self._send(files.get("/".join(rest[2:])), oid)
        elif rest[:1] == ["tree"]:
            listed = [(hashlib.sha1(content).hexdigest(), len(content), path) for path, content in files.items()]
            self._json([{"type": "file", "oid": tag, "size": size, "path": path} for tag, size, path in listed])
        else:
            siblings = [{"rfilename": path} for path in files]
            self._json({"id": f"{user}/{name}", "sha": oid, "private": repository.private, "siblings": siblings})

    def _send(self, content: bytes | None, oid: str) -> None:
        if content is None:
            self._missing("EntryNotFound")
        else:
            self._say(200, content, ETag=f'"{hashlib.sha1(content).hexdigest()}"', X_Repo_Commit=oid)

    do_HEAD = do_GET  # noqa: N815


@contextlib.contextmanager
def hub(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """A hub that huggingface_hub takes for the real one.

    Args:
        folder: for its client's cache.
        monkeypatch: puts everything back.
    """
    made = FakeHub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": made}))
    server.daemon_threads = True
    made.address = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", made.address)
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", made.address + "/{repo_id}/resolve/{revision}/{filename}"
    )
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder / "hub-cache"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(huggingface_hub.hf_api.api, "endpoint", made.address)
    huggingface_hub.close_session()
    try:
        yield made
    finally:
        huggingface_hub.close_session()
        server.shutdown()
        server.server_close()
