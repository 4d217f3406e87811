"""A local double of the Hub: as much of its HTTP interface as a run that is published and fetched needs."""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

SHA = "0123456789abcdef0123456789abcdef01234567"


class Hub(ThreadingHTTPServer):
    """Holds repositories in memory.

    Attributes:
        repos: Files by repository.
        private: Repositories that were made for their owners alone.
        asked: Every request that came, method and path.
        forbidden: Whether nobody may write.
    """

    daemon_threads = True

    def __init__(self) -> None:
        """Listen on a free port of this machine."""
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repos: dict[str, dict[str, bytes]] = {}
        self.blobs: dict[str, bytes] = {}
        self.private: set[str] = set()
        self.asked: list[str] = []
        self.forbidden = False

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    server: Hub  # type: ignore[assignment]

    def log_message(self, *_: Any) -> None:
        """Say nothing."""

    def _answer(self, value: Any, status: int = 200, **headers: str) -> None:
        body = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.send_response(status)
        for name, text in ({"Content-Length": str(len(body))} | headers).items():
            self.send_header(name.replace("_", "-"), text)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _missing(self, what: str) -> None:
        self._answer({"error": "not found"}, 404, X_Error_Code=what, X_Error_Message="not found")

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        self.server.asked.append(f"{self.command} {self.path}")
        path = self.path.partition("?")[0]
        if found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/[^/]+/(.+)", path):
            files = self.server.repos.get(found[1])
            if files is None:
                return self._missing("RepoNotFound")
            if found[2] not in files:
                return self._missing("EntryNotFound")
            etag = f'"{hashlib.sha256(files[found[2]]).hexdigest()}"'
            return self._answer(files[found[2]], ETag=etag, X_Repo_Commit=SHA)
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)(/revision/[^/]+|/tree/.+)?", path):
            files = self.server.repos.get(found[1])
            if files is None:
                return self._missing("RepoNotFound")
            if (found[2] or "").startswith("/tree"):
                return self._answer(
                    [{"type": "file", "path": name, "size": len(data), "oid": SHA} for name, data in files.items()]
                )
            names = [{"rfilename": name} for name in files]
            whose = {"id": found[1], "modelId": found[1], "sha": SHA, "private": found[1] in self.server.private}
            return self._answer({**whose, "siblings": names, "tags": []})
        return self._missing("EntryNotFound")

    def do_PUT(self) -> None:
        self.server.asked.append(f"PUT {self.path}")
        self.server.blobs[self.path.rpartition("/")[2]] = self._body()
        self._answer({})

    def do_POST(self) -> None:
        self.server.asked.append(f"POST {self.path}")
        body, path = self._body(), self.path.partition("?")[0]
        if self.server.forbidden:
            return self._answer({"error": "no right to write here"}, 403)
        if path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked.get('organization')}/{asked['name']}"
            if name in self.server.repos:
                return self._answer({"error": "You already created this model repo", "url": name}, 409)
            self.server.repos[name] = {".gitattributes": b""}
            if asked.get("private") or asked.get("visibility") == "private":
                self.server.private.add(name)
            return self._answer({"url": f"{self.server.url}/{name}"})
        if path == "/api/validate-yaml":
            return self._answer({"errors": [], "warnings": []})
        if "/preupload/" in path:
            files = [
                {
                    "path": one["path"],
                    "uploadMode": "lfs" if one["path"].endswith(".safetensors") else "regular",
                    "shouldIgnore": False,
                }
                for one in json.loads(body)["files"]
            ]
            return self._answer({"files": files})
        if path.endswith("/info/lfs/objects/batch"):
            objects = [
                {**one, "actions": {"upload": {"href": f"{self.server.url}/lfs/{one['oid']}"}}}
                for one in json.loads(body)["objects"]
            ]
            return self._answer({"transfer": "basic", "objects": objects})
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/commit/[^/]+", path):
            files = self.server.repos[found[1]]
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
                elif line["key"] == "lfsFile":
                    files[line["value"]["path"]] = self.server.blobs[line["value"]["oid"]]
                elif line["key"] == "deletedFile":
                    del files[line["value"]["path"]]
            return self._answer({"commitUrl": f"{self.server.url}/{found[1]}/commit/{SHA}", "commitOid": SHA})
        return self._missing("EntryNotFound")


@contextmanager
def serving() -> Iterator[Hub]:
    """A hub that listens while the block runs."""
    hub = Hub()
    thread = threading.Thread(target=hub.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        thread.join()
        hub.server_close()
