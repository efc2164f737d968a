"""Captions: read from the file beside a picture, completed, and shuffled."""

from __future__ import annotations

import codecs
import hashlib
import random
import re
from collections import Counter
from collections.abc import Collection
from pathlib import Path, PurePosixPath

from ..config_data import CaptionConfig
from ..errors import InputError

__all__ = [
    "CAPTION_ENDINGS",
    "caption_file",
    "decode_text",
    "final_caption",
    "has_trigger",
    "one_line",
    "read_text",
    "tags",
    "variants",
]

_LARGEST = 1 << 16  # bytes of a caption file: encoders read some hundred letters, a host all, in parts of 75 words
CAPTION_ENDINGS = (".txt", ".TXT", ".caption", ".CAPTION")  # the first that is there counts


def caption_file(picture: str, names: Collection[str]) -> str | None:
    """The name among `names`, files of one folder, that holds the caption of the picture with the name `picture`."""
    stem = PurePosixPath(picture).stem
    return next((stem + ending for ending in CAPTION_ENDINGS if stem + ending in names), None)


def read_text(file: Path, name: str) -> str | None:
    """Read a caption file (UTF-8, or UTF-16 with its mark) as one line; None when it is blank.

    Raises InputError, in which `name` stands for the file, when it cannot be read, has another encoding or is no
    caption by its size.
    """
    try:
        with file.open("rb") as opened:
            data = opened.read(_LARGEST + 1)
    except OSError as error:
        raise InputError(f"caption {name} cannot be read ({error.strerror}); check its permissions") from error
    if len(data) > _LARGEST:
        raise InputError(f"caption {name} has more than {_LARGEST} bytes; wanted a few words: shorten it")
    return one_line(decode_text(data, f"caption {name}")) or None


def decode_text(data: bytes, what: str) -> str:
    """Decode UTF-8, with or without a byte order mark, or UTF-16 with one; else InputError that begins with `what`."""
    utf16 = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))  # Windows editors call it "Unicode"
    try:
        return data.decode("utf-16" if utf16 else "utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise InputError(
            f"{what} is not {'UTF-16' if utf16 else 'UTF-8'} text (byte {error.start}); "
            "save it again with the encoding UTF-8"
        ) from error


def one_line(text: str) -> str:
    """Bring text to one line with single blanks."""
    return " ".join(text.split())


def final_caption(written: str | None, trigger_word: str, subset: str, config: CaptionConfig, name: str) -> str:
    """The caption to train with: what was written, else the trigger word, else the class tokens of its folder.

    Prefix and suffix go around it with one blank between, as kohya's trainers do; a comma is theirs to bring.
    Raises InputError when there is nothing but prefix and suffix.
    """
    caption = one_line(written or "") or one_line(trigger_word) or one_line(subset)
    if not caption:
        text_file = PurePosixPath(name).with_suffix(".txt").name
        raise InputError(
            f"picture {name} has no caption; write one into {text_file} beside it, "
            "or give a trigger word that stands for pictures without a caption"
        )
    return one_line(f"{config.prefix} {caption} {config.suffix}")


def tags(caption: str) -> list[str]:
    """The parts of a caption between commas, without blanks around them and without empty ones."""
    return [tag for part in caption.split(",") if (tag := part.strip())]


def variants(caption: str, config: CaptionConfig) -> tuple[str, ...]:
    """The distinct texts that stand for a caption: itself, or with `shuffle` orders of its tags, the written one first.

    The first `keep_tags` stay in front. The orders follow from the caption alone, so that a cache serves every run,
    and fewer variants are the first of more.
    """
    words = tags(caption)
    kept, free = words[: config.keep_tags], words[config.keep_tags :]
    if not config.shuffle or not words:
        return (caption,)
    wanted = _orders(free, config.variants)
    draw = random.Random(int.from_bytes(hashlib.sha256(caption.encode()).digest(), "big"))
    found = {", ".join(kept + free): None}
    while len(found) < wanted:  # ends: every order is as likely as any other
        draw.shuffle(free)
        found[", ".join(kept + free)] = None
    return tuple(found)


def has_trigger(caption: str, trigger_word: str) -> bool:
    """Whether the trigger word, which may be several words, stands in a caption as whole words, in any case."""
    word = one_line(trigger_word).casefold()
    return bool(word) and re.search(rf"(?<!\w){re.escape(word)}(?!\w)", one_line(caption).casefold()) is not None


def _orders(words: list[str], most: int) -> int:
    """How many distinct orders there are, n! over the factorials of how often each word comes, but at most `most`."""
    count, often = 1, Counter[str]()
    for number, word in enumerate(words, 1):
        often[word] += 1
        count = count * number // often[word]  # the orders of the words so far: whole, and never fewer than before
        if count >= most:
            return most
    return count
