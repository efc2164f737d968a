"""Captions beside pictures, and what is made of them."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from trilora_core.config_data import CaptionConfig
from trilora_core.data.captions import (
    caption_file,
    final_caption,
    has_trigger,
    read_text,
    tags,
    variants,
)
from trilora_core.errors import InputError


@pytest.mark.parametrize(
    ("data", "caption"),
    [
        (b"a red fox", "a red fox"),
        (b"\xef\xbb\xbfa red fox\r\n", "a red fox"),
        ("una pequeña niña, 狐".encode(), "una pequeña niña, 狐"),
        (b"  a red fox,\n  in the  snow \n", "a red fox, in the snow"),
        ("a 狐".encode("utf-16"), "a 狐"),
        (b"\xfe\xff" + "a fox".encode("utf-16-be"), "a fox"),
        (b" \n", None),
        (b"", None),
    ],
)
def test_caption_is_one_line_of_unicode(tmp_path: Path, data: bytes, caption: str | None) -> None:
    (tmp_path / "a.txt").write_bytes(data)
    assert read_text(tmp_path / "a.txt", "a.txt") == caption


def test_only_the_last_ending_is_replaced_and_txt_comes_first() -> None:
    assert caption_file("a.b.png", {"a.b.caption"}) == "a.b.caption"
    assert caption_file("a.b.png", {"a.b.caption", "a.b.TXT"}) == "a.b.TXT"
    assert caption_file("a.b.png", {"a.txt", "a.b.caption", "a.b.txt"}) == "a.b.txt"
    assert caption_file("a.png", {"b.txt"}) is None


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("una niña".encode("latin-1"), "caption a.txt is not UTF-8 text (byte 6)"),
        ("\ufeffniña".encode()[:5] + b"\xf1a", "caption a.txt is not UTF-8 text (byte 5)"),
        (b"\xff\xfea", "caption a.txt is not UTF-16 text (byte 2)"),
    ],
)
def test_other_encodings_are_named(tmp_path: Path, data: bytes, message: str) -> None:
    (tmp_path / "a.txt").write_bytes(data)
    with pytest.raises(InputError) as raised:
        read_text(tmp_path / "a.txt", "a.txt")
    assert str(raised.value) == f"{message}; save it again with the encoding UTF-8"


def test_final_caption_is_the_written_one_or_the_trigger_word_or_the_class_tokens() -> None:
    plain = CaptionConfig()
    assert final_caption("a  lamp", "fox", "dog", plain, "a.png") == "a lamp"
    assert final_caption(None, " fox  style", "dog", plain, "a.png") == "fox style"
    assert final_caption(" ", "", "sks dog", plain, "a.png") == "sks dog"


def test_prefix_and_suffix_take_one_blank_as_in_kohyas_trainers() -> None:
    config = CaptionConfig(prefix="photo of", suffix=", sharp ")
    assert final_caption("a lamp", "fox", "", config, "a.png") == "photo of a lamp , sharp"
    assert final_caption(None, "fox", "", CaptionConfig(prefix="sks,"), "a.png") == "sks, fox"


def test_no_caption_at_all_is_an_error_even_with_a_prefix() -> None:
    with pytest.raises(InputError) as raised:
        final_caption(None, "  ", "", CaptionConfig(prefix="photo of"), "10_cat/a.png")
    assert str(raised.value) == (
        "picture 10_cat/a.png has no caption; write one into a.txt beside it, "
        "or give a trigger word that stands for pictures without a caption"
    )


def test_without_shuffle_there_is_one_variant_as_written() -> None:
    assert variants("b,a , c", CaptionConfig(variants=4)) == ("b,a , c",)


def test_variants_are_distinct_orders_of_the_same_tags_with_the_first_kept() -> None:
    caption = "cat, sitting, red, old, small"
    found = variants(caption, CaptionConfig(shuffle=True, keep_tags=2, variants=5))
    assert len(found) == len(set(found)) == 5 and found[0] == caption
    assert all(text.startswith("cat, sitting, ") and sorted(tags(text)) == sorted(tags(caption)) for text in found)
    assert found == variants(caption, CaptionConfig(shuffle=True, keep_tags=2, variants=5))
    assert found[:3] == variants(caption, CaptionConfig(shuffle=True, keep_tags=2, variants=3))


def test_orders_stay_the_same_from_version_to_version() -> None:
    assert variants("a, b, c, d", CaptionConfig(shuffle=True, variants=3)) == ("a, b, c, d", "a, d, c, b", "b, c, d, a")


@pytest.mark.parametrize(
    ("caption", "keep", "count"),
    [("a, b, c", 0, 6), ("a, b, b", 0, 3), ("a, b, c", 1, 2), ("a, b", 5, 1), ("a fox", 0, 1), (",", 0, 1), ("", 0, 1)],
)
def test_there_are_no_more_variants_than_orders(caption: str, keep: int, count: int) -> None:
    assert len(variants(caption, CaptionConfig(shuffle=True, keep_tags=keep, variants=100))) == count


def test_orders_of_many_tags_are_not_counted_to_the_end() -> None:
    caption = ", ".join(str(number) for number in range(10_000))
    started = time.process_time()
    assert len(variants(caption, CaptionConfig(shuffle=True, variants=3))) == 3
    assert time.process_time() - started < 2
    assert len(variants(", ".join(["a"] * 20_000 + ["b"]), CaptionConfig(shuffle=True, variants=3))) == 3


def test_a_file_that_is_no_caption_by_its_size_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a " * (1 << 15), encoding="utf-8")
    assert read_text(tmp_path / "a.txt", "a.txt") == " ".join("a" * (1 << 15))
    (tmp_path / "a.txt").write_text("a " * 500_000, encoding="utf-8")
    with pytest.raises(InputError, match=r"caption a\.txt has more than 65536 bytes"):
        read_text(tmp_path / "a.txt", "a.txt")


def test_tags_are_the_parts_between_commas() -> None:
    assert tags(" a cat ,, red,") == ["a cat", "red"]
    assert tags("") == []


@pytest.mark.parametrize(
    ("caption", "word", "found"),
    [
        ("a photo of SKS  dog, red", "sks dog", True),
        ("asks dog", "sks", False),
        ("sks_dog", "sks", False),
        ("a (sks), b", "Sks", True),
        ("c++ book", "c++", True),
        ("a dog", " ", False),
    ],
)
def test_trigger_words_are_found_as_whole_words(caption: str, word: str, found: bool) -> None:
    assert has_trigger(caption, word) is found
