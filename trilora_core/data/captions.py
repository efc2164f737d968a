"""The caption of a picture: the .txt file beside it, or the trigger word."""

from __future__ import annotations

from pathlib import Path

from ..errors import InputError

__all__ = ["caption_or_trigger", "read_caption"]


def read_caption(picture: Path, trigger_word: str) -> str:
    """Read the caption of a picture from the .txt file of the same name, in UTF-8; lines become one line.

    A missing or blank file gives the trigger word; InputError when there is neither, or when the file is not UTF-8.
    """
    file = _caption_file(picture)
    if file is None:
        return caption_or_trigger("", trigger_word, picture.name)
    try:
        text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(
            f"caption {file.name} is not UTF-8 text (byte {error.start}); save it again with the encoding UTF-8"
        ) from error
    except OSError as error:
        raise InputError(f"caption {file.name} cannot be read ({error.strerror}); check its permissions") from error
    return caption_or_trigger(text, trigger_word, picture.name)


def caption_or_trigger(text: str, trigger_word: str, name: str) -> str:
    """Bring a caption to one line; a blank one becomes the trigger word; InputError when that is blank too."""
    caption = " ".join(text.split()) or " ".join(trigger_word.split())
    if not caption:
        text_file = Path(name).with_suffix(".txt").name
        raise InputError(
            f"picture {name} has no caption; write one into {text_file} beside it, "
            "or give a trigger word that stands for pictures without a caption"
        )
    return caption


def _caption_file(picture: Path) -> Path | None:
    for ending in (".txt", ".TXT"):
        file = picture.with_suffix(ending)
        if file.is_file():
            return file
    return None
