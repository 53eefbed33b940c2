"""Files and folders that are written whole or not at all."""

from pathlib import Path

import pytest

from tryon.files import free_disk, full_path, read_json, replacing


def test_a_file_is_the_old_one_until_the_new_one_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "new" / "file"
    with replacing(path) as staging:
        staging.write_text("first")
        assert not path.exists()
    with pytest.raises(KeyError), replacing(path) as staging:
        staging.write_text("second")
        raise KeyError
    assert path.read_text() == "first" and list(path.parent.iterdir()) == [path]


def test_a_folder_takes_no_other_s_place(tmp_path: Path) -> None:
    path = tmp_path / "folder"
    for content in ("first", "second"):
        try:
            with replacing(path) as staging:
                staging.mkdir()
                (staging / "file").write_text(content)
        except OSError:
            assert content == "second"
    assert (path / "file").read_text() == "first" and list(tmp_path.iterdir()) == [path]


def test_a_path_that_is_kept_holds_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "link").symlink_to("file")
    (tmp_path / "folder").mkdir()
    monkeypatch.chdir(tmp_path / "folder")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert full_path("~/link") == tmp_path / "link", "a link has its name for a reason"
    assert full_path("../other/./it") == tmp_path / "other" / "it"


def test_free_disk_is_asked_of_what_is_there(tmp_path: Path) -> None:
    assert free_disk(tmp_path / "not" / "yet") > 0


@pytest.mark.parametrize("content", [b"", b"# Title", b"\x89PNG", b"[1]"])
def test_a_file_without_names_and_values_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"config.json cannot be read as JSON \(.*\): put a whole copy in its place"):
        read_json(tmp_path / "config.json")
    assert read_json(tmp_path / "nowhere.json") == {}
