from __future__ import annotations

import os
from pathlib import Path

import pytest

from trilora_core.atomic import check_name, check_spelling, check_writable, write_atomic, write_text
from trilora_core.errors import InputError


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path):
    path = tmp_path / "a.safetensors"
    path.write_text("old")

    def fail(temporary):
        temporary.write_text("half")
        raise RuntimeError("power")

    with pytest.raises(RuntimeError):
        write_atomic(path, fail)
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_a_name_that_leaves_no_room_for_its_neighbours_is_refused_before_the_work(tmp_path):
    check_name(tmp_path / ("é" * 90 + ".safetensors"))
    with pytest.raises(InputError, match="has 212 bytes; wanted at most 200"):
        check_name(tmp_path / ("é" * 100 + ".safetensors"))


def test_a_write_replaces_the_file_and_makes_the_folder(tmp_path):
    path = tmp_path / "new" / "a.txt"
    write_atomic(path, lambda temporary: temporary.write_text("one") and None)
    write_atomic(path, lambda temporary: temporary.write_text("two") and None)
    assert path.read_text() == "two" and list(path.parent.iterdir()) == [path]


def test_a_disk_that_cannot_flush_a_folder_has_the_file_all_the_same(tmp_path, monkeypatch):
    inner = os.fsync

    def flush(handle):
        if os.path.isdir(f"/proc/self/fd/{handle}"):
            raise OSError(22, "Invalid argument")
        inner(handle)

    monkeypatch.setattr(os, "fsync", flush)
    write_atomic(tmp_path / "a", lambda path: path.write_text("whole"))
    assert (tmp_path / "a").read_text() == "whole"


def test_text_is_written_in_utf_8_with_the_same_line_ends_everywhere(tmp_path):
    write_text(tmp_path / "a.txt", "Σ\n")
    assert (tmp_path / "a.txt").read_bytes() == "Σ\n".encode()


def test_a_path_that_is_no_text_is_refused():
    check_spelling(Path("Σ.png"))
    with pytest.raises(InputError, match=r"the path a\\udcff/b\.png is not UTF-8.*; give it another name"):
        check_spelling(Path("a\udcff") / "b.png")


def test_ordinary_permissions(tmp_path):
    old = os.umask(0o022)
    try:
        write_atomic(tmp_path / "a", lambda temporary: None)
    finally:
        os.umask(old)
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o644


def test_an_unwritable_folder_is_named(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(InputError, match=r"cannot write .*file/a\.txt: .*; choose a folder that you can write to"):
        write_atomic(tmp_path / "file" / "a.txt", lambda temporary: None)
    with pytest.raises(InputError, match=r"cannot write to .*file: it is a file; choose a folder"):
        check_writable(tmp_path / "file")
    with pytest.raises(InputError, match=r"cannot write to the folder .*below: .*; choose one that you can write to"):
        check_writable(tmp_path / "file" / "below")
    with pytest.raises(InputError, match="File name too long"):
        check_writable(tmp_path / ("b" * 300) / "c")
    check_writable(tmp_path)
    check_writable(tmp_path / "a" / "b", leave=False)
    with pytest.raises(InputError, match="cannot write to the folder"):
        check_writable(tmp_path / "a" / ("b" * 300), leave=False)  # its parent was made, and is taken away
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]
    check_writable(tmp_path / "a" / "b")
    assert (tmp_path / "a" / "b").is_dir()
