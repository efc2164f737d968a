"""Captions beside pictures."""

from __future__ import annotations

from pathlib import Path

import pytest

from trilora_core.data.captions import read_caption
from trilora_core.errors import InputError


@pytest.mark.parametrize(
    ("data", "caption"),
    [
        (b"a red fox", "a red fox"),
        (b"\xef\xbb\xbfa red fox\r\n", "a red fox"),
        ("una pequeña niña, 狐".encode(), "una pequeña niña, 狐"),
        (b"  a red fox,\n  in the  snow \n", "a red fox, in the snow"),
    ],
)
def test_caption_is_one_line_of_utf8(tmp_path: Path, data: bytes, caption: str) -> None:
    (tmp_path / "a.txt").write_bytes(data)
    assert read_caption(tmp_path / "a.png", "") == caption


def test_missing_or_blank_caption_is_the_trigger_word(tmp_path: Path) -> None:
    (tmp_path / "blank.txt").write_bytes(b" \n")
    assert read_caption(tmp_path / "blank.png", "fox style") == "fox style"
    assert read_caption(tmp_path / "none.png", "fox style") == "fox style"


def test_a_written_caption_is_kept_beside_a_trigger_word(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a lamp")
    assert read_caption(tmp_path / "a.png", "fox style") == "a lamp"


def test_only_the_last_ending_is_replaced_and_capitals_are_found(tmp_path: Path) -> None:
    (tmp_path / "a.b.TXT").write_text("two dots")
    assert read_caption(tmp_path / "a.b.png", "") == "two dots"


def test_no_caption_and_no_trigger_word_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"picture a.png has no caption; write one into a.txt beside it, or give"):
        read_caption(tmp_path / "a.png", "  ")


def test_other_encodings_are_named(tmp_path: Path) -> None:
    for data in ("una niña".encode("latin-1"), "a fox".encode("utf-16")):
        (tmp_path / "a.txt").write_bytes(data)
        with pytest.raises(InputError, match=r"caption a.txt is not UTF-8 text \(byte \d+\); save it again"):
            read_caption(tmp_path / "a.png", "fox")
