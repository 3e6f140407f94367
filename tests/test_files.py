"""Files that no reader ever sees half of, and that a power cut leaves."""

import errno
import json
import os
import pathlib
import stat

import pytest

from jaxcifar.files import append, read_lines, replace, walk, write_json, write_shared
from tests.tiny import Synced


def test_a_reader_leaves_out_a_half_written_line(tmp_path):
    path = tmp_path / "lines"
    path.write_text('{"epoch": 1}\n{"epoch": 2}\n{"epo')
    assert read_lines(path) == [{"epoch": 1}, {"epoch": 2}]
    assert read_lines(tmp_path / "none") == []


def test_links_are_followed_once_and_folders_go_by_their_own_name(tmp_path):
    for name in ("top/z/deep", "elsewhere/far"):
        (tmp_path / name).mkdir(parents=True)
    top = tmp_path / "top"
    (top / "a").symlink_to(top / "z")  # before z by its name
    (top / "z" / "deep" / "up").symlink_to(top)
    (top / "b").symlink_to(tmp_path / "elsewhere")
    (top / "c").symlink_to(tmp_path / "elsewhere" / "far")
    (top / "z" / "file").touch()
    (top / "away").mkdir()
    found = {}
    for path, folders, names in walk(top):
        found[str(path.relative_to(top))] = names
        folders[:] = [name for name in folders if name != "away"]
    assert found == {".": [], "z": ["file"], "z/deep": [], "b": [], "b/far": []}


def test_files_are_replaced_whole(tmp_path, monkeypatch):
    path = tmp_path / "file.json"
    write_json(path, {"a": 1})
    assert json.loads(path.read_text()) == {"a": 1}
    # Killed before the last moment: the old file is whole.
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        replace(path, "half")
    assert json.loads(path.read_text()) == {"a": 1}


@pytest.mark.parametrize("write", [replace, write_shared])
def test_a_replaced_file_keeps_its_mode(write, tmp_path):
    """A group that shares the folder would lose its access."""
    path, before = tmp_path / "file.json", os.umask(0o077)
    try:
        write(path, "one")
        assert path.stat().st_mode & 0o777 == 0o600
        path.chmod(0o664)
        write(path, "other")
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == 0o664


def test_no_link_leads_to_another_file(tmp_path):
    """Such as one in a folder from elsewhere, by the name of the temporary file."""
    (tmp_path / "mine").write_text("mine")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "table.tmp.md").symlink_to(tmp_path / "mine")
    replace(tmp_path / "run" / "table.md", "new")
    assert (tmp_path / "mine").read_text() == "mine"
    assert not (tmp_path / "run" / "table.md").is_symlink()


def test_a_text_that_utf_8_cannot_hold_is_written_all_the_same(tmp_path):
    """Such as the name of a folder from a system with another encoding."""
    replace(tmp_path / "table.md", "caf\udce9")
    assert (tmp_path / "table.md").read_text() == r"caf\udce9"


@pytest.mark.parametrize("write", [replace, write_shared])
def test_a_file_is_on_the_disk_before_it_takes_its_name_and_then_its_name_is(
    write, tmp_path, monkeypatch
):
    synced, rename = Synced(monkeypatch), os.replace
    monkeypatch.setattr(
        os, "replace", lambda one, other: synced.paths.append("renamed") or rename(one, other)
    )
    write(tmp_path / "file.json", "text")
    content, *rest = synced.paths
    assert pathlib.Path(content).parent == tmp_path
    assert rest == ["renamed", str(tmp_path)]


def test_a_file_system_that_cannot_sync_names(tmp_path, monkeypatch):
    """Such as folders that a virtual machine shares with its host."""

    def fsync(opened):
        if stat.S_ISDIR(os.fstat(opened).st_mode) or broken:
            raise OSError(errno.EINVAL, "Invalid argument")

    broken = False
    monkeypatch.setattr(os, "fsync", fsync)
    replace(tmp_path / "file", "text")
    assert (tmp_path / "file").read_text() == "text"
    broken = True
    with pytest.raises(OSError, match="Invalid argument"):
        append(tmp_path / "file", "more")
    with pytest.raises(OSError, match="Invalid argument"):
        replace(tmp_path / "file", "other")
    assert (tmp_path / "file").read_text().startswith("text")


def test_a_line_is_on_the_disk_once_it_is_appended(tmp_path, monkeypatch):
    synced = Synced(monkeypatch)
    append(tmp_path / "lines", "one")
    assert synced.paths == [str(tmp_path / "lines")]
