"""A hub on loopback that serves folders as repositories, through the few addresses that downloading uses."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import sha1
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

COMMIT = "0" * 40


@dataclass
class StubHub:
    """repositories: name -> folder. gated: those whose files need a licence. cut: those whose files end halfway.
    refusing: name -> the status that every request is answered with. sizes: path -> bytes that a file is said to have.
    asked: every "<repository>/<path>" of which content was sent."""

    repositories: dict[str, Path]
    gated: set[str] = field(default_factory=set)
    cut: set[str] = field(default_factory=set)
    refusing: dict[str, int] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    url: str = ""


@contextmanager
def serve(hub: StubHub) -> Iterator[StubHub]:
    """The hub, answering at hub.url."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            parts = self.path.split("?")[0].strip("/").split("/")
            is_api = parts[:1] == ["api"]
            if is_api or parts[0] == "datasets":
                parts = parts[2:] if is_api else parts[1:]
            name, rest = "/".join(parts[:2]), parts[2:]
            folder = hub.repositories.get(name)
            if name in hub.refusing:
                self.answer(hub.refusing[name], b"refused")
            elif folder is None:
                self.answer(404, b"{}", {"X-Error-Code": "RepoNotFound"})
            elif is_api and rest[:1] in ([], ["revision"]):
                self.answer(200, json.dumps({"id": name, "sha": COMMIT, "siblings": []}).encode())
            elif is_api and rest[0] == "tree":
                files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
                self.answer(200, json.dumps([self.entry(folder, path) for path in files]).encode())
            elif name in hub.gated:
                self.answer(403, b"gated", {"X-Error-Code": "GatedRepo"})
            elif not (folder / "/".join(rest[2:])).is_file():
                self.answer(404, b"no such file", {"X-Error-Code": "EntryNotFound"})
            else:
                file = "/".join(rest[2:])
                content = (folder / file).read_bytes()
                if self.command == "GET":
                    hub.asked.append(f"{name}/{file}")
                headers = {"ETag": f'"{sha1(content).hexdigest()}"', "X-Repo-Commit": COMMIT}
                if file in hub.sizes:
                    headers["X-Linked-Size"] = str(hub.sizes[file])
                self.answer(200, content, headers, content[: len(content) // 2] if name in hub.cut else None)

        def entry(self, folder: Path, path: Path) -> dict:
            relative, content = str(path.relative_to(folder)), path.read_bytes()
            size = hub.sizes.get(relative, len(content))
            return {"type": "file", "path": relative, "size": size, "oid": sha1(content).hexdigest()}

        def answer(
            self, status: int, body: bytes, headers: dict[str, str] | None = None, sent: bytes | None = None
        ) -> None:
            self.send_response(status)
            for key, value in {"Content-Type": "application/json", **(headers or {})}.items():
                self.send_header(key, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body if sent is None else sent)
                self.close_connection = sent is not None

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
