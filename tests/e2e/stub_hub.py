"""A hub on loopback that serves folders as repositories and takes uploads, through the few addresses that are used."""

import json
import re
import threading
from base64 import b64decode
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import sha1, sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

COMMIT = "0" * 40


@dataclass
class StubHub:
    """repositories: name -> folder. gated: those whose files need a licence. cut: those whose files end halfway.
    refusing: name -> the status that every request is answered with. sizes: path -> bytes that a file is said to have.
    asked: every "<repository>/<path>" of which content was sent. owners: token -> what the hub says of its owner, who
    may write. unplugged: tokens whose requests get no answer. uploaded: repository -> path -> content. private: the
    repositories that were made so."""

    repositories: dict[str, Path]
    gated: set[str] = field(default_factory=set)
    cut: set[str] = field(default_factory=set)
    refusing: dict[str, int] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    owners: dict[str, dict] = field(default_factory=dict)
    unplugged: set[str] = field(default_factory=set)
    uploaded: dict[str, dict[str, bytes]] = field(default_factory=dict)
    private: set[str] = field(default_factory=set)
    url: str = ""


@contextmanager
def serve(hub: StubHub) -> Iterator[StubHub]:
    """The hub, answering at hub.url."""

    large: dict[str, bytes] = {}  # by sha256

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
            if self.token() in hub.unplugged:
                self.close_connection = True
                return
            if self.path == "/api/whoami-v2":
                owner = hub.owners.get(self.token())
                self.answer(200 if owner else 401, json.dumps(owner or {"error": "no such token"}).encode())
                return
            if name in hub.refusing:
                self.answer(hub.refusing[name], b"refused")
            elif self.path == f"/api/models/{name}" and (name in hub.uploaded or name in hub.private or folder):
                self.answer(200, json.dumps({"id": name, "sha": COMMIT, "private": name in hub.private}).encode())
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

        def do_PUT(self) -> None:
            content = self.body()
            digest = sha256(content).hexdigest()
            assert self.path == f"/large/{digest}", "the hub would refuse another content than was announced"
            large[digest] = content
            self.answer(200, b"")

        def do_POST(self) -> None:
            body = self.body()
            upload = re.fullmatch(r"/api/models/(.+?)/(preupload|commit)/main", self.path)
            batch = re.fullmatch(r"/(.+)\.git/info/lfs/objects/batch", self.path)
            asked = {} if upload and upload[2] == "commit" else json.loads(body)
            created = f"{asked.get('organization')}/{asked.get('name')}"
            name = upload[1] if upload else batch[1] if batch else created
            if self.token() in hub.unplugged:
                self.close_connection = True
            elif self.path == "/api/validate-yaml":
                self.answer(200, b"{}")
            elif name in hub.refusing:
                self.answer(hub.refusing[name], b'{"error": "refused"}')
            elif self.token() not in hub.owners:
                self.answer(401, b'{"error": "who are you?"}')
            elif self.path == "/api/repos/create":
                known = name in hub.uploaded
                hub.uploaded.setdefault(name, {})
                if not known and asked.get("visibility") == "private":
                    hub.private.add(name)
                self.answer(409 if known else 200, json.dumps({"url": f"{hub.url}/{name}"}).encode())
            elif batch:
                found = [
                    {**each, "actions": {"upload": {"href": f"{hub.url}/large/{each['oid']}"}}}
                    for each in asked["objects"]
                ]
                self.answer(200, json.dumps({"objects": found}).encode())
            elif upload[2] == "preupload":
                modes = [
                    {
                        "path": file["path"],
                        "uploadMode": "lfs" if file["path"].endswith(".safetensors") else "regular",
                        "shouldIgnore": False,
                    }
                    for file in asked["files"]
                ]
                self.answer(200, json.dumps({"files": modes}).encode())
            else:
                for line in map(json.loads, body.splitlines()):
                    value = line["value"]
                    if line["key"] == "file":
                        hub.uploaded[name][value["path"]] = b64decode(value["content"])
                    elif line["key"] == "lfsFile":
                        hub.uploaded[name][value["path"]] = large[value["oid"]]
                found = {"commitUrl": f"{hub.url}/{name}/commit/{COMMIT}", "commitOid": COMMIT}
                self.answer(200, json.dumps(found).encode())

        def body(self) -> bytes:
            if self.headers.get("Transfer-Encoding") == "chunked":
                content = b""
                while size := int(self.rfile.readline(), 16):
                    content += self.rfile.read(size)
                    self.rfile.readline()
                self.rfile.readline()
                return content
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))

        def token(self) -> str:
            return self.headers.get("Authorization", "").removeprefix("Bearer ")

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
            if self.command != "HEAD":
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
