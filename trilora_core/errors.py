"""The one error for bad input: what came, what was wanted, what to do."""

from __future__ import annotations

__all__ = ["InputError", "clear_line"]

_LONGEST = 2000  # letters of a message: the names in a stranger's file can be of any length


class InputError(ValueError):
    """Something the user gave cannot be used; the message is one line that a person can act on."""

    def __init__(self, message: str) -> None:
        super().__init__(clear_line(message, _LONGEST))


def clear_line(text: str, most: int) -> str:
    """Text as one line of at most `most` letters, its middle left out where it is longer.

    Ends of lines and tabs become spaces, and what a terminal would obey (escape codes, changes of the direction of
    writing) or could not write (half characters) is spelled out.
    """
    if len(text) > most:
        end = most // 3  # what to do stands there
        text = f"{text[: most - end - 3]} … {text[-end:]}"
    if text.isprintable():
        return text
    return "".join(_plain(letter) for letter in text)


def _plain(letter: str) -> str:
    return letter if letter.isprintable() else " " if letter.isspace() else ascii(letter)[1:-1]
