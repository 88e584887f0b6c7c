from __future__ import annotations

import errno
import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError

from scstate_lora.io import FORMAT_VERSION, check_state, load_directory, save_directory, save_load
from scstate_lora.io.save_load import add_texts


def _save(path: Path, value: float = 1.0, **metadata: Any) -> None:
    save_directory(
        path,
        metadata={"class": "Some", **metadata},
        tensors={"adapters": {"a": torch.full((2, 3), value)}, "base": {"b": torch.arange(4)}},
        texts={"NOTICE": "Licence: none — ü\n"},
    )


def _only(path: Path) -> bool:
    """Whether nothing but the save lies in its parent: no leftovers of the writing."""
    return [p.name for p in path.parent.iterdir()] == [path.name]


def test_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "new" / "model"
    _save(path, sizes={"d": 3})
    metadata, tensors = load_directory(path)
    assert metadata["class"] == "Some"
    assert metadata["sizes"] == {"d": 3}
    assert metadata["format_version"] == FORMAT_VERSION
    assert metadata["package_version"]
    assert metadata["files"] == ["NOTICE", "adapters.safetensors", "base.safetensors", "model.json"]
    assert torch.equal(tensors["adapters"]["a"], torch.ones(2, 3))
    assert torch.equal(tensors["base"]["b"], torch.arange(4))
    assert (path / "NOTICE").read_text(encoding="utf-8") == "Licence: none — ü\n"
    assert _only(path)


def test_tensors_of_one_storage_and_views(tmp_path: Path) -> None:
    whole = torch.arange(12.0).reshape(3, 4)
    state = {"whole": whole, "again": whole, "row": whole[1], "column": whole[:, 1], "grad": torch.nn.Parameter(whole)}
    save_directory(tmp_path / "m", metadata={}, tensors={"t": state})
    loaded = load_directory(tmp_path / "m")[1]["t"]
    assert all(torch.equal(loaded[name], state[name]) for name in state)


def test_replaces_its_own_save(tmp_path: Path) -> None:
    path = tmp_path / "m"
    _save(path, 1.0)
    save_directory(path, metadata={}, tensors={"adapters": {"a": torch.zeros(1)}})
    metadata, tensors = load_directory(path)
    assert set(tensors) == {"adapters"}
    assert sorted(p.name for p in path.iterdir()) == metadata["files"]
    assert _only(path)


def test_texts_that_are_added_belong_to_the_save(tmp_path: Path) -> None:
    path = tmp_path / "model"
    save_directory(path, metadata={"model": "M"}, tensors={"a": {"x": torch.ones(2)}})
    add_texts(path, {"config.yaml": "seed: 1\n", "results.json": "{}"})
    metadata, _ = load_directory(path)
    assert {"config.yaml", "results.json", "a.safetensors"} < set(metadata["files"])
    assert (path / "config.yaml").read_text() == "seed: 1\n"
    assert metadata["model"] == "M"
    save_directory(path, metadata={"model": "M"}, tensors={})  # nothing in it is foreign
    assert {file.name for file in path.iterdir()} == {"model.json"}
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError):
        add_texts(tmp_path / "empty", {"config.yaml": ""})
    assert list((tmp_path / "empty").iterdir()) == []


def test_an_empty_directory_is_filled(tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    _save(tmp_path / "m")
    assert load_directory(tmp_path / "m")[0]["class"] == "Some"


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    _save(tmp_path / "m", 1.0)
    (tmp_path / "link").symlink_to(tmp_path / "m")
    _save(tmp_path / "link", 2.0)
    assert (tmp_path / "link").is_symlink()
    assert load_directory(tmp_path / "m")[1]["adapters"]["a"][0, 0] == 2


def test_foreign_directory_raises(tmp_path: Path) -> None:
    path = tmp_path / "thesis"
    path.mkdir()
    (path / "thesis.tex").write_text("years of work")
    with pytest.raises(FileExistsError, match=r"thesis exists and is not a saved model .*Choose another path"):
        _save(path)
    assert (path / "thesis.tex").read_text() == "years of work"
    assert _only(path)


def test_existing_file_raises(tmp_path: Path) -> None:
    (tmp_path / "m").write_text("a file")
    with pytest.raises(FileExistsError, match="not a saved model"):
        _save(tmp_path / "m")
    assert (tmp_path / "m").read_text() == "a file"


def test_foreign_model_json_raises(tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "model.json").write_text("{}")
    with pytest.raises(FileExistsError, match="no format_version"):
        _save(tmp_path / "m")


def test_users_files_in_a_save_raises(tmp_path: Path) -> None:
    _save(tmp_path / "m")
    (tmp_path / "m" / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match=r"would delete: notes\.txt"):
        _save(tmp_path / "m", 2.0)
    assert load_directory(tmp_path / "m")[1]["adapters"]["a"][0, 0] == 1


@pytest.mark.parametrize(
    "failure",
    [OSError(errno.ENOSPC, "No space left on device"), SafetensorError("I/O error: No space left on device")],
    ids=["os", "safetensors"],
)
def test_full_disk_leaves_the_old_save_raises(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: Exception
) -> None:
    path = tmp_path / "m"
    _save(path, 1.0)
    before = {p.name: p.read_bytes() for p in path.iterdir()}
    calls = []

    def full(state: object, file: Path) -> None:
        calls.append(file)
        if len(calls) == 2:  # the first tensors still fit
            raise failure
        file.write_bytes(b"half")

    monkeypatch.setattr(save_load, "save_file", full)
    with pytest.raises(OSError, match=r"(?s)Writing .*m failed: .*No space left.*unchanged"):
        _save(path, 2.0)
    assert {p.name: p.read_bytes() for p in path.iterdir()} == before
    assert _only(path)


def test_a_disk_that_is_really_full_raises(tmp_path: Path) -> None:
    """The system's own limit on a file's size stands for the full disk."""
    path = tmp_path / "m"
    _save(path, 1.0)
    program = (
        "import sys, torch\n"
        "from scstate_lora.io import save_directory\n"
        "try:\n"
        "    save_directory(sys.argv[1], metadata={}, tensors={'adapters': {'a': torch.zeros(100_000)}})\n"
        "except OSError as error:\n"
        "    print(error)\n"
    )

    resource = pytest.importorskip("resource", reason="Windows cannot limit the size of a file")

    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))

    done = subprocess.run(
        [sys.executable, "-c", program, str(path)], preexec_fn=limit, capture_output=True, text=True, check=True
    )
    assert "failed" in done.stdout
    assert "unchanged" in done.stdout
    assert load_directory(path)[1]["adapters"]["a"][0, 0] == 1
    assert _only(path)


@pytest.mark.parametrize("failure", [OSError(errno.EIO, "broken"), KeyboardInterrupt()], ids=["io", "ctrl-c"])
def test_failure_while_swapping_restores_raises(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: BaseException
) -> None:
    path = tmp_path / "m"
    _save(path, 1.0)
    rename = Path.rename

    def fails(self: Path, target: Path) -> Path:
        if self.name == "new":
            raise failure
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fails)
    with pytest.raises(type(failure)):
        _save(path, 2.0)
    monkeypatch.undo()
    assert load_directory(path)[1]["adapters"]["a"][0, 0] == 1
    assert _only(path)


@pytest.mark.parametrize("value", [float("nan"), object()], ids=["nan", "object"])
def test_metadata_that_is_not_json_raises(tmp_path: Path, value: object) -> None:
    with pytest.raises((ValueError, TypeError), match="JSON"):
        _save(tmp_path / "m", bad=value)
    assert not any(tmp_path.iterdir())


def test_missing_directory_raises(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no directory .*nowhere\. Check the path"):
        load_directory(tmp_path / "nowhere")


def test_killed_while_swapping_says_where_the_model_is_raises(tmp_path: Path) -> None:
    (tmp_path / ".m.abc").mkdir()
    _save(tmp_path / ".m.abc" / "old")
    with pytest.raises(FileNotFoundError, match=r"interrupted; the model before it is at .*\.m\.abc/old"):
        load_directory(tmp_path / "m")


def test_file_for_directory_raises(tmp_path: Path) -> None:
    (tmp_path / "m").write_text("")
    with pytest.raises(FileNotFoundError, match=r"m is a file; a saved model is a directory"):
        load_directory(tmp_path / "m")


def test_no_metadata_raises(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"holds no model\.json"):
        load_directory(tmp_path)


def _edit(path: Path, **changes: Any) -> None:
    file = path / "model.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def test_newer_format_raises(tmp_path: Path) -> None:
    _save(tmp_path / "m")
    _edit(tmp_path / "m", format_version=FORMAT_VERSION + 1, package_version="99.0")
    with pytest.raises(ValueError, match=r"format version 2, written by scstate-lora 99\.0; .*Upgrade scstate-lora"):
        load_directory(tmp_path / "m")


def test_no_list_of_files_raises(tmp_path: Path) -> None:
    _save(tmp_path / "m")
    _edit(tmp_path / "m", files=3)
    with pytest.raises(ValueError, match="does not list its files"):
        load_directory(tmp_path / "m")


def test_files_outside_the_directory_are_not_read_raises(tmp_path: Path) -> None:
    _save(tmp_path / "m")
    _save(tmp_path / "other")
    _edit(tmp_path / "m", files=["../other/base.safetensors"])
    with pytest.raises(FileNotFoundError, match=r"lacks \.\./other/base\.safetensors"):
        load_directory(tmp_path / "m")


@pytest.mark.parametrize("content", ['{"format_version": 1,', "[1]", "{}", b"\xff\xfe\x00"])
def test_broken_json_raises(tmp_path: Path, content: str | bytes) -> None:
    _save(tmp_path / "m")
    file = tmp_path / "m" / "model.json"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=r"model\.json (is not valid JSON|has no format_version)"):
        load_directory(tmp_path / "m")


@pytest.mark.parametrize("n_bytes", [0, 5, 90])
def test_truncated_tensors_raises(tmp_path: Path, n_bytes: int) -> None:
    _save(tmp_path / "m")
    file = tmp_path / "m" / "adapters.safetensors"
    assert file.stat().st_size > n_bytes
    file.write_bytes(file.read_bytes()[:n_bytes])
    with pytest.raises(ValueError, match=r"adapters\.safetensors is truncated or damaged .*save the model again"):
        load_directory(tmp_path / "m")


def test_missing_file_raises(tmp_path: Path) -> None:
    _save(tmp_path / "m")
    (tmp_path / "m" / "base.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"lacks base\.safetensors\. Copy the whole directory"):
        load_directory(tmp_path / "m")


def test_check_state_passes_equal_names_and_shapes() -> None:
    check_state({"a": torch.zeros(2)}, {"a": torch.ones(2)}, source="adapters.safetensors")


def test_check_state_lists_all_differences_raises() -> None:
    expected = {"same": torch.zeros(1), "lost": torch.zeros(2, 3), "wide": torch.zeros(4), "real": torch.zeros(7)}
    stored = {"same": torch.zeros(1).half(), "extra": torch.zeros(5), "wide": torch.zeros(6), "real": torch.arange(7)}
    with pytest.raises(ValueError, match=r"adapters\.safetensors do not fit") as caught:
        check_state(expected, stored, source="adapters.safetensors")
    message = str(caught.value)
    assert "missing: lost (2, 3)" in message
    assert "unexpected: extra (5,)" in message
    assert "wide is (6,), expected (4,)" in message
    assert "type: real is torch.int64, expected torch.float32" in message
    assert "same" not in message


def test_all_files_may_be_read_by_the_same_people(tmp_path: Path) -> None:
    save_directory(tmp_path / "m", metadata={}, tensors={"a": {"x": torch.ones(2)}}, texts={"NOTICE": "mine"})
    assert len({file.stat().st_mode for file in (tmp_path / "m").iterdir()}) == 1
