"""A model hub on this machine that takes uploads as the real one does: small files in the commit, large ones by LFS."""

import base64
import contextlib
import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

TOKEN = "hf_fake"


class FakeHub(ThreadingHTTPServer):
    """Repositories by name: whether private, and path -> content."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repositories: dict[str, dict] = {}
        self.objects: dict[str, bytes] = {}
        self.url = f"http://127.0.0.1:{self.server_port}"


@contextlib.contextmanager
def fake_hub() -> Iterator[FakeHub]:
    """Run a hub until the end of the block."""
    with FakeHub() as hub:
        threading.Thread(target=hub.serve_forever, daemon=True).start()
        yield hub
        hub.shutdown()


class _Handler(BaseHTTPRequestHandler):
    def log_message(self, *_) -> None:
        pass

    def reply(self, content: dict, status: int = 200) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def read(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def do_GET(self) -> None:
        self.reply({"error": "not found"}, 404)

    def do_PUT(self) -> None:
        self.server.objects[self.path.rpartition("/")[2]] = self.read()
        self.reply({})

    def do_POST(self) -> None:
        body, hub = self.read(), self.server
        if self.path == "/api/validate-yaml":
            return self.reply({"errors": [], "warnings": []})
        if self.headers.get("Authorization") != f"Bearer {TOKEN}" and not self.path.endswith("/objects/batch"):
            return self.reply({"error": "Invalid username or password."}, 401)
        if self.path == "/api/repos/create":
            values = json.loads(body)
            name = f"{values['organization']}/{values['name']}"
            if name in hub.repositories:
                return self.reply({"error": "You already created this model repo", "url": f"{hub.url}/{name}"}, 409)
            hub.repositories[name] = {"private": values.get("visibility") == "private", "files": {}}
            return self.reply({"url": f"{hub.url}/{name}", "id": name})
        if found := re.fullmatch(r"/api/models/([\w-]+/[\w-]+)/preupload/main", self.path):
            files = json.loads(body)["files"]
            modes = {file["path"]: "lfs" if file["path"].endswith(".safetensors") else "regular" for file in files}
            listed = [{"path": path, "uploadMode": mode, "shouldIgnore": False} for path, mode in modes.items()]
            return self.reply({"files": listed})
        if self.path.endswith("/info/lfs/objects/batch"):
            upload = lambda oid: {"upload": {"href": f"{hub.url}/objects/{oid}"}}
            objects = [one | {"actions": upload(one["oid"])} for one in json.loads(body)["objects"]]
            return self.reply({"transfer": "basic", "objects": objects})
        if found := re.fullmatch(r"/api/models/([\w-]+/[\w-]+)/commit/main", self.path):
            files = hub.repositories[found[1]]["files"]
            for line in map(json.loads, body.splitlines()):
                value = line["value"]
                if line["key"] == "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                elif line["key"] == "lfsFile":
                    files[value["path"]] = hub.objects[value["oid"]]
            return self.reply({"success": True, "commitOid": "0" * 40, "commitUrl": f"{hub.url}/{found[1]}/commit/0"})
        return self.reply({"error": f"unknown: {self.path}"}, 404)
