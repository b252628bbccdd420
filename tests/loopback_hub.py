"""A Hub on loopback, with as much of its API as pushing, loading, streaming and training use. Everything is in memory.

`with LoopbackHub() as hub:` then run clients with `hub.environment(...)` set, as they read it when they are imported.
"""

import base64
import hashlib
import json
import re
import threading
from dataclasses import dataclass, field
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit


USERS = {"hf_owner": "owner", "hf_other": "other"}
KEPT_APART = (".parquet", ".safetensors", ".bin", ".pt", ".pth")  # what the Hub's .gitattributes sends to its storage


@dataclass
class Repo:
    private: bool
    gated: str | bool = False
    commits: list[tuple[str, str, dict[str, bytes]]] = field(default_factory=list)  # sha, title, files

    def add(self, title: str, files: dict[str, bytes]) -> str:
        sha = hashlib.sha1(f"{len(self.commits)}{title}{sorted(files)}".encode()).hexdigest()
        self.commits.append((sha, title, files))
        return sha

    def at(self, revision: str) -> tuple[str, dict[str, bytes]] | None:
        found = [each for each in self.commits if each[0] == revision] or (
            self.commits[-1:] if revision == "main" else []
        )
        return (found[0][0], found[0][2]) if found else None


class LoopbackHub:
    """`repos` by (type, name), `blobs` by sha256, `log` of (method, path, status), `faults` to come.

    A fault is [regex of "METHOD /path", how many requests pass first, action]: a status; "lost": done, not answered;
    "race": somebody else commits first.
    """

    def __init__(self):
        self.repos: dict[tuple[str, str], Repo] = {}
        self.blobs: dict[str, bytes] = {}
        self.log: list[tuple[str, str, int | None]] = []
        self.faults: list[list] = []
        self.lock = threading.Lock()
        handler = type("Handler", (_Handler,), {"hub": self})
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def __enter__(self) -> "LoopbackHub":
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_) -> None:
        self.server.shutdown()

    def environment(self, home: Path, token: str = "hf_owner") -> dict[str, str]:
        return {
            "HF_ENDPOINT": self.url, "HF_TOKEN": token, "HF_HOME": str(home), "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1",
        }  # fmt: skip

    def files(self, kind: str, name: str, revision: str = "main") -> dict[str, bytes]:
        return self.repos[kind, name].at(revision)[1]

    def done(self, method: str, pattern: str) -> int:
        """How many requests of this kind succeeded."""
        return sum(m == method and bool(re.search(pattern, path)) and status == 200 for m, path, status in self.log)


class _Handler(BaseHTTPRequestHandler):
    hub: LoopbackHub
    disable_nagle_algorithm = True
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self._serve()

    do_POST = do_PUT = do_HEAD = do_GET

    def log_message(self, *_):
        pass

    def _serve(self) -> None:
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path, line = unquote(urlsplit(self.path).path), f"{self.command} {urlsplit(self.path).path}"
        with self.hub.lock:
            action = self._fault(line)
            if isinstance(action, int):
                answer = (action, {"error": "planned"}, {})
            else:
                if action == "race":
                    for repo in self.hub.repos.values():
                        repo.add("somebody else's", repo.at("main")[1])
                answer = self._answer(path)
            self.hub.log.append((self.command, path, None if action == "lost" else answer[0]))
        if action == "lost":
            self.close_connection = True
            return self.connection.close()
        self._send(*answer)

    def _fault(self, line: str) -> int | str | None:
        for fault in self.hub.faults:
            if re.search(fault[0], line):
                fault[1] -= 1
                if fault[1] < 0:
                    self.hub.faults.remove(fault)
                    return fault[2]
        return None

    def _send(self, status: int, content: object, headers: dict) -> None:
        raw = content if isinstance(content, bytes) else json.dumps(content).encode()
        span = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        if span and status == 200:
            start, end = int(span[1]), min(int(span[2] or len(raw)), len(raw) - 1)
            headers = headers | {"Content-Range": f"bytes {start}-{end}/{len(raw)}"}
            status, raw = 206, raw[start : end + 1]
        self.send_response(status)
        for name, value in {"Content-Length": str(len(raw)), "Date": formatdate(), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(raw)

    def _answer(self, path: str) -> tuple[int, object, dict]:
        self.user = USERS.get((self.headers.get("Authorization") or "").removeprefix("Bearer "))
        if path == "/api/whoami-v2":
            return 200, {"name": self.user, "type": "user", "orgs": []}, {}
        if path == "/api/repos/create":
            return self._create(json.loads(self.body))
        if path == "/api/validate-yaml":
            return 200, {"errors": [], "warnings": []}, {}
        if found := re.fullmatch(r"/storage/(\w+)", path):
            self.hub.blobs[found[1]] = self.body
            return 200, {}, {}
        patterns = (
            (r"/api/(dataset|model|space|bucket)s/([^/]+/[^/]+)(?:/(\w[\w-]*)(?:/([^/]+)(?:/(.*))?)?)?", True),
            (r"/(datasets/)?([^/]+/[^/]+?)(?:\.git)?/(info|resolve)/([^/]+)/(.*)", False),
        )
        for pattern, api in patterns:
            if found := re.fullmatch(pattern, path):
                kind = found[1] if api else "dataset" if found[1] else "model"
                repo = self.hub.repos.get((kind, found[2]))
                if repo is None or (repo.private and self.user != found[2].split("/")[0]):
                    code = 404 if self.user else 401
                    return code, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"}
                if self.command in ("POST", "PUT") and self.user != found[2].split("/")[0] and found[3] != "paths-info":
                    return 403, {"error": "no write access"}, {}
                return self._in_repo(repo, kind, found[2], found[3] or "", found[4] or "main", found[5] or "")
        return 404, {"error": f"no such endpoint {path}"}, {}

    def _create(self, asked: dict) -> tuple[int, object, dict]:
        name, kind = f"{asked.get('organization') or self.user}/{asked['name']}", asked.get("type") or "model"
        url = f"{self.hub.url}/{'datasets/' if kind == 'dataset' else ''}{name}"
        if name.split("/")[0] != self.user:
            return 403, {"error": "no write access"}, {}
        if (kind, name) in self.hub.repos:
            return 409, {"error": "exists", "url": url}, {}
        repo = self.hub.repos[kind, name] = Repo(asked.get("visibility") == "private" or bool(asked.get("private")))
        repo.add("initial commit", {".gitattributes": b""})
        return 200, {"url": url, "name": name, "id": name}, {}

    def _in_repo(self, repo: Repo, kind: str, name: str, what: str, revision: str, rest: str):
        if what == "info":  # {repo}.git/info/lfs/objects/batch or verify
            return self._storage(rest)
        if what == "settings":
            asked = json.loads(self.body)
            repo.gated = asked.get("gated") or repo.gated
            repo.private = asked.get(
                "private", {"private": True, "public": False}.get(asked.get("visibility"), repo.private)
            )
            return 200, {}, {}
        found = repo.at(revision)
        if found is None:
            return 404, {"error": "no such revision"}, {"X-Error-Code": "RevisionNotFound"}
        sha, files = found
        if what in ("", "revision"):
            info = {"id": name, "sha": sha, "private": repo.private, "gated": repo.gated, "tags": [], "downloads": 0}
            info |= {"createdAt": "2026-01-01T00:00:00.000Z", "size": 0, "totalFiles": len(files)}
            return 200, info | {"siblings": [{"rfilename": file} for file in files]}, {}
        if what == "tree":
            return self._tree(files, rest)
        if what == "paths-info":
            asked = parse_qs(self.body.decode()).get("paths") or json.loads(self.body or b"{}").get("paths", [])
            return 200, [_entry(file, files[file]) for file in asked if file in files], {}
        if what == "commits":
            dated = {"date": "2026-01-01T00:00:00.000Z", "authors": [], "message": ""}
            return 200, [{"id": sha, "title": title, **dated} for sha, title, _ in reversed(repo.commits)], {}
        if what == "preupload":
            asked = json.loads(self.body)["files"]
            modes = [(file["path"], file["path"].endswith(KEPT_APART) or file["size"] > 10_000_000) for file in asked]
            modes = [
                {"path": p, "uploadMode": "lfs" if apart else "regular", "shouldIgnore": False} for p, apart in modes
            ]
            return 200, {"files": modes}, {}
        if what == "commit":
            return self._commit(repo, kind, name, sha, files)
        if what == "resolve":
            if rest not in files:
                return 404, {"error": "Entry not found"}, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": sha}
            etag = f'"{hashlib.sha256(files[rest]).hexdigest()}"'
            return 200, files[rest], {"ETag": etag, "X-Repo-Commit": sha, "Accept-Ranges": "bytes"}
        return 404, {"error": f"no such endpoint {what}"}, {}

    def _storage(self, rest: str):
        asked = json.loads(self.body)
        if rest.endswith("verify"):
            return 200, {}, {}
        links = lambda oid: {  # noqa: E731
            "upload": {"href": f"{self.hub.url}/storage/{oid}"},
            "verify": {"href": f"{self.hub.url}{self.path.removesuffix('objects/batch')}verify"},
        }
        objects = [
            each | ({} if each["oid"] in self.hub.blobs else {"actions": links(each["oid"])})
            for each in asked["objects"]
        ]
        return 200, {"transfer": "basic", "objects": objects}, {"Content-Type": "application/vnd.git-lfs+json"}

    def _tree(self, files: dict[str, bytes], folder: str):
        prefix = f"{folder}/" if folder else ""
        inside = [file for file in files if file.startswith(prefix)]
        if folder and not inside:
            return 404, {"error": "Entry not found"}, {"X-Error-Code": "EntryNotFound"}
        recursive = "recursive=true" in self.path.lower()
        entries = [_entry(file, files[file]) for file in inside if recursive or "/" not in file[len(prefix) :]]
        folders = {prefix + file[len(prefix) :].split("/")[0] for file in inside if "/" in file[len(prefix) :]}
        return 200, entries + [{"type": "directory", "path": path, "oid": "0", "size": 0} for path in folders], {}

    def _commit(self, repo: Repo, kind: str, name: str, sha: str, files: dict[str, bytes]):
        lines = [json.loads(line) for line in self.body.splitlines()]
        header = next(line["value"] for line in lines if line["key"] == "header")
        if header.get("parentCommit") not in (None, sha):
            return 412, {"error": "A commit has happened since. Please refresh and try again."}, {}
        files = dict(files)
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.hub.blobs[value["oid"]]
            elif line["key"] == "deletedFile":
                del files[value["path"]]
        new = repo.add(header["summary"], files)
        url = f"{self.hub.url}/{'datasets/' if kind == 'dataset' else ''}{name}/commit/{new}"
        return 200, {"success": True, "commitOid": new, "commitUrl": url, "hookOutput": ""}, {}


def _entry(path: str, content: bytes) -> dict:
    entry = {"type": "file", "path": path, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
    if path.endswith(KEPT_APART):
        entry["lfs"] = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 130}
    return entry
