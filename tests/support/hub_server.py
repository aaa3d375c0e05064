"""A stand-in for Hugging Face's HTTP API, on this machine: it makes repositories, takes commits and serves
files as `huggingface_hub` asks for them. It knows what these tests need and is no proof of how the real one
answers."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import yaml

TOKEN = "hf_stand_in_secret"
COMMIT = "0" * 40


class Hub(ThreadingHTTPServer):
    """Its repositories, and what was asked of it."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.private: set[str] = set()
        self.asked: list[str] = []
        self.fails: dict[str, int] = {}
        """status by a part of the path that it is given for"""

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


@contextmanager
def hub_server() -> Iterator[Hub]:
    hub = Hub()
    threading.Thread(target=hub.serve_forever, daemon=True).start()
    yield hub
    hub.shutdown()
    hub.server_close()


class _Handler(BaseHTTPRequestHandler):
    server: Hub

    def log_message(self, *arguments: Any) -> None:
        pass

    def _answer(self, status: int, content: Any = None, headers: dict[str, str] | None = None) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _rejected(self) -> bool:
        path = self.path.partition("?")[0]
        self.server.asked.append(f"{self.command} {path}")
        status = next((status for part, status in self.server.fails.items() if part in path), None)
        if status is None and self.command == "POST" and self.headers["Authorization"] != f"Bearer {TOKEN}":
            status = 401
        if status is not None:
            self._answer(status, {"error": f"the stand-in says {status}"})
        return status is not None

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"] or 0))
        if self._rejected():
            return
        if self.path == "/api/repos/create":
            self._create(json.loads(body))
        elif self.path == "/api/validate-yaml":
            self._validate(json.loads(body)["content"])
        elif "/preupload/" in self.path:
            files = [{"path": file["path"], "uploadMode": "regular"} for file in json.loads(body)["files"]]
            self._answer(200, {"files": [file | {"shouldIgnore": False} for file in files]})
        elif match := re.match(r"/api/models/([^/]+/[^/]+)/commit/", self.path):
            self._commit(match[1], body)
        else:
            self._answer(404, {"error": f"the stand-in does not know {self.path}"})

    def _create(self, asked: dict[str, Any]) -> None:
        name = f"{asked.get('organization', 'me')}/{asked['name']}"
        exists = name in self.server.repositories
        self.server.repositories.setdefault(name, {})
        if asked.get("private") or asked.get("visibility") == "private":
            self.server.private.add(name)
        self._answer(
            409 if exists else 200, {"url": f"{self.server.address}/{name}", "name": name, "id": name}
        )

    def _validate(self, card: str) -> None:
        license = yaml.safe_load(card.split("---")[1]).get("license")
        known = license in ("mit", "apache-2.0", "cc-by-4.0")
        errors = [] if known else [{"message": f'"license" must be one of […], got {license}'}]
        self._answer(200 if known else 400, {"errors": errors, "warnings": []})

    def _commit(self, name: str, body: bytes) -> None:
        for line in map(json.loads, body.splitlines()):
            if line["key"] == "file":
                content = base64.b64decode(line["value"]["content"])
                self.server.repositories[name][line["value"]["path"]] = content
        url = f"{self.server.address}/{name}/commit/{COMMIT}"
        self._answer(200, {"commitUrl": url, "commitOid": COMMIT, "success": True})

    def do_GET(self) -> None:
        if self._rejected():
            return
        path = self.path.partition("?")[0]
        if match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/[^/]+/(.+)", path):
            content = self.server.repositories.get(match[1], {}).get(match[2])
            if content is None:
                self._answer(404, {}, {"X-Error-Code": "EntryNotFound"})
            else:
                digest = hashlib.sha1(content).hexdigest()
                self._answer(200, content, {"ETag": f'"{digest}"', "X-Repo-Commit": COMMIT})
        elif match := re.match(r"/api/models/([^/]+/[^/]+)/tree/", path):
            files = self.server.repositories.get(match[1], {})
            about = [{"path": name, "size": len(content)} for name, content in files.items()]
            self._answer(200, [each | {"type": "file", "oid": COMMIT} for each in about])
        elif match := re.match(r"/api/models/([^/]+/[^/]+)", path):
            files = [{"rfilename": file} for file in self.server.repositories.get(match[1], {})]
            self._answer(200, {"id": match[1], "sha": COMMIT, "siblings": files, "private": False})
        else:
            self._answer(404, {})

    do_HEAD = do_GET
