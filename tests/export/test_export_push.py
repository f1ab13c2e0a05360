"""--push, by the real huggingface_hub against a stand-in for the hub on this machine."""

import base64
import json
import os
import shutil
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import forked
import pytest
from conftest import TINY, run_export

from poweropd_lite.export.card import public

TOKEN = "hf_secretsecretsecretsecretsecretsecret"


class Hub(BaseHTTPRequestHandler):
    """What huggingface_hub asks for an upload of small files; repositories are kept in `server.repos`."""

    def do_GET(self) -> None:
        if not self.allowed():
            return
        name = "/".join(self.path.split("?")[0].split("/")[3:5])
        if self.path.startswith("/api/whoami-v2"):
            self.answer({"name": "me", "type": "user"})
        elif name in self.server.repos and "/tree/" in self.path:
            files = self.server.repos[name]["files"]
            self.answer([{"type": "file", "path": f, "size": len(raw), "oid": "0" * 40} for f, raw in files.items()])
        elif name in self.server.repos:
            files = self.server.repos[name]["files"]
            self.answer(
                {
                    "id": name,
                    "sha": "0" * 40,
                    "siblings": [{"rfilename": f} for f in files],
                    "private": self.server.repos[name]["private"],
                    "tags": [],
                }
            )
        else:
            self.answer({"error": "Repository not found"}, 404, {"X-Error-Code": "RepoNotFound"})

    def do_POST(self) -> None:
        if not self.allowed():
            return
        raw = self.rfile.read(int(self.headers["Content-Length"]))
        repos = self.server.repos
        if self.path.startswith("/api/repos/create"):
            asked = json.loads(raw)
            name = f"{asked.get('organization') or 'me'}/{asked['name']}"
            repos.setdefault(
                name, {"files": {}, "private": asked.get("private") or asked.get("visibility") == "private"}
            )
            self.answer({"url": f"{self.address()}/{name}", "id": name})
        elif "/preupload/" in self.path:
            files = [
                {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in json.loads(raw)["files"]
            ]
            self.answer({"files": files})
        elif "/commit/" in self.path:
            if self.server.full:
                self.answer({"error": f"quota used up for {TOKEN}"}, 403)
                return
            name = "/".join(self.path.split("/")[3:5])
            for line in map(json.loads, raw.decode().splitlines()):
                if line["key"] == "deletedFile":
                    repos[name]["files"].pop(line["value"]["path"])
                if line["key"] == "file":
                    repos[name]["files"][line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            self.answer({"commitUrl": f"{self.address()}/{name}/commit/1", "commitOid": "1" * 40, "success": True})
        else:
            self.answer({"success": True})

    def allowed(self) -> bool:
        self.server.tokens.add(self.headers.get("Authorization"))
        if self.headers.get("Authorization") == f"Bearer {TOKEN}":
            return True
        self.answer({"error": "Invalid credentials"}, 401)
        return False

    def answer(self, value: dict | list, code: int = 200, headers: dict | None = None) -> None:
        body = json.dumps(value).encode()
        self.send_response(code)
        for key, text in {
            "Content-Type": "application/json",
            "Content-Length": str(len(body)),
            **(headers or {}),
        }.items():
            self.send_header(key, text)
        self.end_headers()
        self.wfile.write(body)

    def address(self) -> str:
        return f"http://127.0.0.1:{self.server.server_address[1]}"

    def log_message(self, *_: object) -> None:
        """Says nothing."""


@pytest.fixture(scope="module")
def stand_in(tmp_path_factory):
    """The stand-in, and a server of commands whose libraries know of no other hub."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    server.env = {k: v for k, v in os.environ.items() if k != "HF_HUB_OFFLINE"} | {
        "HF_ENDPOINT": f"http://127.0.0.1:{server.server_address[1]}",
        "HF_HOME": str(tmp_path_factory.mktemp("home")),
        "HF_HUB_DISABLE_XET": "1",
    }
    server.commands = forked.Server(env=server.env)
    yield server
    server.commands.close()
    server.shutdown()


@pytest.fixture
def hub(stand_in):
    stand_in.repos, stand_in.tokens, stand_in.full = {}, set(), False
    return stand_in


def pushed(hub, folder: Path, *flags: str, token: str = TOKEN):
    output = [] if "--output" in flags else ["--output", "out"]
    flags = ["a", "--to", "adapter", *output, "--push", "me/power10", *flags]
    return hub.commands.run("-m", "poweropd_lite.export", *flags, cwd=folder, env=hub.env | {"HF_TOKEN": token})


@pytest.fixture
def adapter(trained, tmp_path) -> Path:
    shutil.copytree(trained / "run" / "adapter", tmp_path / "a")
    return tmp_path


def test_the_upload_is_the_export_and_the_token_stays_where_it_was(hub, adapter):
    done = pushed(hub, adapter)
    assert done.returncode == 0, done.stderr
    files = dict(hub.repos["me/power10"]["files"])
    assert (
        files == {p.name: p.read_bytes() for p in (adapter / "out").iterdir()} and "adapter_model.safetensors" in files
    )
    assert hub.repos["me/power10"]["private"] is True and hub.tokens - {None} == {f"Bearer {TOKEN}"}
    assert b"# power10" in files["README.md"]
    assert TOKEN not in done.stdout + done.stderr
    everything = [p for place in (adapter, Path(hub.env["HF_HOME"])) for p in place.rglob("*") if p.is_file()]
    assert not any(TOKEN.encode() in p.read_bytes() for p in everything)
    # There it is not uploaded over unless asked for, and then nothing of an earlier format stays, and nothing of the user's goes.
    hub.repos["me/power10"]["files"]["model-q8_0.gguf"] = b"old"
    again = pushed(hub, adapter, "--overwrite")
    assert again.returncode == 0, again.stderr
    assert set(hub.repos["me/power10"]["files"]) == set(files)
    hub.repos["me/power10"]["files"]["notes.txt"] = b"mine"
    mine = pushed(hub, adapter, "--overwrite")
    assert mine.returncode == 2 and "files that no export writes (for one notes.txt)" in mine.stderr
    del hub.repos["me/power10"]["files"]["notes.txt"]
    hub.repos["me/power10"]["private"] = False
    shown = pushed(hub, adapter, "--overwrite")
    assert shown.returncode == 2 and "is there already and public" in shown.stderr
    shutil.rmtree(adapter / "out")
    refused = pushed(hub, adapter)
    assert refused.returncode == 2 and "holds" in refused.stderr and "--overwrite" in refused.stderr
    assert not (adapter / "out").exists()


def test_an_export_is_replaced_by_its_own_program_whatever_files_it_has(hub, adapter):
    """A folder of chat templates; and of an earlier export into a whole, its processors, oddly named shards and base's code."""
    (adapter / "a" / "additional_chat_templates").mkdir()
    (adapter / "a" / "additional_chat_templates" / "tool_use.jinja").write_text("{{ messages[0]['content'] }}")
    shutil.copytree(TINY / "student", adapter / "student")
    (adapter / "student" / "own.py").write_text("")
    flags = ["--base", "student", "--trust-remote-code", "--overwrite"]
    assert pushed(hub, adapter, *flags).returncode == 0
    there = hub.repos["me/power10"]["files"]
    assert set(there) > {"additional_chat_templates/tool_use.jinja", "chat_template.jinja", "export.json"}
    written = set(there)
    kinds = ("processor", "preprocessor", "video_preprocessor", "generation")
    earlier = ["own.py", "model.safetensors-00001-of-00002.safetensors", "model-00001-of-00002.safetensors"]
    earlier += ["additional_chat_templates/rag.jinja", "tokenizer.model", *(f"{kind}_config.json" for kind in kinds)]
    there.update(dict.fromkeys(earlier, b"old"))
    again = pushed(hub, adapter, *flags)
    assert again.returncode == 0, again.stderr
    assert set(there) == written and b"old" not in there.values()
    for mine in ("mine.py", "additional_chat_templates/notes.txt", "templates/tool_use.jinja"):
        there[mine] = b"mine"
        done = pushed(hub, adapter, *flags)
        assert done.returncode == 2 and f"no export writes (for one {mine})" in done.stderr
        del there[mine]


def test_a_token_that_is_not_taken_is_found_before_the_work(hub, adapter):
    done = pushed(hub, adapter, token="hf_wrong")
    assert done.returncode == 2 and "does not take the token" in done.stderr and "Traceback" not in done.stderr
    assert not (adapter / "out").exists() and hub.repos == {} and "hf_wrong" not in done.stderr


def test_a_failed_upload_keeps_the_export_and_says_how_to_go_on(hub, adapter):
    hub.full = True
    done = pushed(hub, adapter)
    assert (
        done.returncode == 2
        and "upload to me/power10 failed" in done.stderr
        and "hf upload me/power10 out" in done.stderr
    )
    assert TOKEN not in done.stderr and (adapter / "out" / "export.json").exists()


def test_commands_for_a_folder_with_a_space_are_quoted(hub, adapter):
    hub.full = True
    shutil.copytree(TINY / "student", adapter / "my base" / "student")
    done = pushed(hub, adapter, "--base", "my base/student", "--output", "my out")
    assert "hf upload me/power10 'my out' --private" in done.stderr, done.stderr
    base = (adapter / "my base" / "student").resolve()
    assert f"`vllm serve '{base}' --enable-lora" in (adapter / "my out" / "README.md").read_text()


@pytest.mark.parametrize(("name", "shown"), [("Qwen/Qwen3-0.6B", "Qwen/Qwen3-0.6B"), ("gsm8k", "gsm8k"), ("/data/gone.jsonl", "gone.jsonl"), ("./mine", "mine"), ("a/b/c", "c"), ("my.parquet", "my.parquet")])  # fmt: skip
def test_a_card_tells_no_path(name, shown):
    assert public(name) == shown


def test_offline_is_said(adapter, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    done = run_export("a", "--to", "adapter", "--push", "me/x", cwd=adapter)  # as all tests, with HF_HUB_OFFLINE=1
    assert done.returncode == 2 and "HF_HUB_OFFLINE" in done.stderr
