from __future__ import annotations

import json
import logging
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from huggingface_hub import constants, file_download

from scstate_lora.io.published.hub import fetch_snapshot, is_hub_id

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

SHA = "0123456789abcdef0123456789abcdef01234567"
FILES = {"config.yaml": b"a: 1\n", "model.safetensors": b"weights", "readme.md": b"not wanted"}


def _choose(names: Sequence[str]) -> list[str]:
    return [name for name in names if name.endswith((".yaml", ".safetensors"))]


class _Hub(BaseHTTPRequestHandler):
    """As much of the Hub as downloading needs; ``answer`` makes it refuse."""

    answer: tuple[int, str] | None = None
    gated_files = False

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if self.answer is not None:
            self._reply(b"{}", status=self.answer[0], code=self.answer[1])
        elif path.startswith("/api/models/owner/name/tree/"):
            self._reply(
                json.dumps([{"type": "file", "path": k, "size": len(v), "oid": k} for k, v in FILES.items()]).encode()
            )
        elif path.startswith("/api/models/owner/name"):
            self._reply(
                json.dumps(
                    {"id": "owner/name", "sha": SHA, "siblings": [{"rfilename": name} for name in FILES]}
                ).encode()
            )
        elif self.gated_files:
            self._reply(b"", status=403, code="GatedRepo")
        else:
            self._reply(FILES[path.rpartition("/")[2]])

    do_HEAD = do_GET

    def _reply(self, body: bytes, *, status: int = 200, code: str = "") -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("ETag", f'"{hash(body):x}"')
        self.send_header("X-Repo-Commit", SHA)
        if code:
            self.send_header("X-Error-Code", code)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, online, and no Hub at all: nothing listens on this port."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "cache"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[_Hub]]:
    handler = type("_ThisHub", (_Hub,), {})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    endpoint = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    template = endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    for module in (constants, file_download):  # huggingface_hub below 1.0 copies it
        monkeypatch.setattr(module, "HUGGINGFACE_CO_URL_TEMPLATE", template, raising=False)
    yield handler
    server.shutdown()
    server.server_close()
    thread.join()


def _cached(cache: Path, *, revision: str = "main", files: dict[str, bytes] = FILES) -> Path:
    """The layout of huggingface_hub's cache, by hand."""
    repo = cache / "models--owner--name"
    snapshot = repo / "snapshots" / SHA
    for folder in (repo / "blobs", repo / "refs", snapshot):
        folder.mkdir(parents=True)
    (repo / "refs" / revision).write_text(SHA)
    for i, (name, data) in enumerate(files.items()):
        (repo / "blobs" / str(i)).write_bytes(data)
        (snapshot / name).symlink_to(Path("..", "..", "blobs", str(i)))
    return snapshot


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("arcinstitute/SE-600M", True),
        ("arcinstitute/SE-600M@v1.0", True),
        ("owner/name@refs/pr/1", True),
        ("name", False),
        ("./owner/name", False),
        ("/owner/name", False),
        ("../name", False),
        ("~/name", False),
        ("owner/name/more", False),
        ("owner/name@", False),
        ("owner/na me", False),
        ("owner/model.ckpt", False),
        ("owner/model.safetensors", False),
        (Path("owner/name"), False),
    ],
)
def test_is_hub_id(text: str, expected: bool) -> None:
    assert is_hub_id(text) is expected


def test_a_local_path_is_no_hub_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert is_hub_id("owner/name")
    (tmp_path / "owner" / "name").mkdir(parents=True)
    assert not is_hub_id("owner/name")


def test_downloads_what_is_wanted_once(hub: type[_Hub], cache: Path) -> None:
    folder = fetch_snapshot("owner/name", choose=_choose)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == {
        name: FILES[name] for name in ("config.yaml", "model.safetensors")
    }
    assert cache in folder.parents
    hub.answer = (500, "")
    assert fetch_snapshot("owner/name", choose=_choose, offline=True) == folder


@pytest.mark.parametrize("by_setting", [True, False])
def test_offline_takes_the_cache(cache: Path, monkeypatch: pytest.MonkeyPatch, by_setting: bool) -> None:
    snapshot = _cached(cache)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", by_setting)
    assert fetch_snapshot("owner/name", choose=_choose, offline=None if by_setting else True) == snapshot


def test_offline_takes_the_revision(cache: Path) -> None:
    snapshot = _cached(cache, revision="v1")
    assert fetch_snapshot("owner/name@v1", choose=_choose, offline=True) == snapshot
    assert fetch_snapshot(f"owner/name@{SHA}", choose=_choose, offline=True) == snapshot
    with pytest.raises(FileNotFoundError, match=r"owner/name \(revision main\) is not in the cache"):
        fetch_snapshot("owner/name", choose=_choose, offline=True)


def test_offline_and_not_cached_raises(cache: Path) -> None:
    with pytest.raises(FileNotFoundError, match=rf"owner/name .* not in the cache {cache}.*offline mode.*local folder"):
        fetch_snapshot("owner/name", choose=_choose, offline=True)


def test_offline_and_cached_in_part_raises(hub: type[_Hub]) -> None:
    fetch_snapshot("owner/name", choose=lambda names: [n for n in names if n.endswith(".yaml")])

    def weights(names: Sequence[str]) -> list[str]:
        return [name for name in names if name.endswith(".safetensors")]

    with pytest.raises(FileNotFoundError, match=r"none of the required files; it holds config\.yaml\."):
        fetch_snapshot("owner/name", choose=weights, offline=True)
    hub.answer = None
    assert (fetch_snapshot("owner/name", choose=weights) / "model.safetensors").exists()


def test_an_unreachable_hub_takes_the_cache_and_warns(cache: Path, caplog: pytest.LogCaptureFixture) -> None:
    snapshot = _cached(cache)
    logging.getLogger("scstate_lora").addHandler(caplog.handler)
    try:
        assert fetch_snapshot("owner/name", choose=_choose) == snapshot
    finally:
        logging.getLogger("scstate_lora").removeHandler(caplog.handler)
    assert any("cannot be reached" in message and str(snapshot) in message for message in caplog.messages)


@pytest.mark.parametrize("status", [429, 503])
def test_a_broken_hub_takes_the_cache(hub: type[_Hub], cache: Path, status: int) -> None:
    snapshot = _cached(cache)
    hub.answer = (status, "")
    assert fetch_snapshot("owner/name", choose=_choose) == snapshot


def test_no_network_and_not_cached_raises(cache: Path) -> None:
    with pytest.raises(
        ConnectionError, match=rf"owner/name \(revision v2\).*{cache} \(Connect\w*Error.*Check the network"
    ):
        fetch_snapshot("owner/name@v2", choose=_choose)


def test_offline_setting_is_not_overridden_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ConnectionError, match="HF_HUB_OFFLINE"):
        fetch_snapshot("owner/name", choose=_choose, offline=False)


@pytest.mark.parametrize(
    ("status", "code", "error", "match"),
    [
        (
            404,
            "RepoNotFound",
            FileNotFoundError,
            r"no model owner/name \(revision v1\).*private.*HF_TOKEN.*local folder",
        ),
        (401, "RepoNotFound", FileNotFoundError, r"no model owner/name"),
        (404, "RevisionNotFound", FileNotFoundError, r"model owner/name has no revision v1"),
        (403, "GatedRepo", PermissionError, r"owner/name .*accepted its licence.*/owner/name, then log in.*HF_TOKEN"),
        (403, "", PermissionError, r"refused access to owner/name.*hf auth login"),
        (503, "", ConnectionError, r"owner/name .*could not be downloaded.*503"),
    ],
)
def test_answers_of_the_hub_raise(hub: type[_Hub], status: int, code: str, error: type[OSError], match: str) -> None:
    hub.answer = (status, code)
    with pytest.raises(error, match=match):
        fetch_snapshot("owner/name@v1", choose=_choose)


def test_a_gated_file_raises(hub: type[_Hub]) -> None:
    hub.gated_files = True  # anyone may see what a gated model holds
    with pytest.raises(PermissionError, match="accepted its licence"):
        fetch_snapshot("owner/name", choose=_choose)


def test_another_model_raises(cache: Path) -> None:
    _cached(cache, files={"readme.md": b""})
    with pytest.raises(FileNotFoundError, match=r"owner/name holds none of the required files; it holds readme\.md"):
        fetch_snapshot("owner/name", choose=_choose, offline=True)


def test_no_id_raises() -> None:
    with pytest.raises(ValueError, match=r"'a/b/c' is not the id.*owner/name@revision"):
        fetch_snapshot("a/b/c", choose=_choose)
