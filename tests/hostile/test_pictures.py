"""A folder of hostile pictures: each is handled, or left out with one clear line, and the rest trains."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy
import pytest
from PIL import Image

from tests.counting import CountingEncoder, config
from trilora_core.data import load_folder, survey_folder
from trilora_core.errors import InputError

from .guard import outcome


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    data = io.BytesIO()
    image.save(data, kind, **options)
    return data.getvalue()


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(width: int, height: int, *chunks: bytes) -> bytes:
    """A PNG of any size that it says it has, with few bytes."""
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)) + b"".join(chunks)
    )


NOISE = numpy.random.default_rng(0).integers(0, 256, (48, 48, 4), dtype=numpy.uint8)
COLOUR, FOUR = Image.fromarray(NOISE[..., :3]), Image.fromarray(NOISE)
PALETTE = COLOUR.quantize(8)
ZEROS = zlib.compress(bytes(1 << 24))  # 16 MiB in 16 KiB
EXIF = Image.Exif()
EXIF[0x0112] = 6

USED = {
    "cmyk.jpg": encoded(COLOUR.convert("CMYK"), "JPEG"),
    "deep.png": encoded(Image.fromarray(NOISE[..., 0].astype(numpy.uint16) * 257), "PNG"),
    "garbage_profile.png": encoded(COLOUR, "PNG", icc_profile=b"\xff" * 4000),
    "moving.gif": encoded(PALETTE, "GIF", save_all=True, append_images=[PALETTE.rotate(90)]),
    "palette.png": encoded(PALETTE, "PNG", transparency=3),
    "turned.jpg": encoded(COLOUR, "JPEG", exif=EXIF),
    "wrong_ending.jpg": encoded(FOUR, "WEBP"),
}
LEFT_OUT = {
    "bomb.png": png(60_000, 60_000, chunk(b"IDAT", ZEROS), chunk(b"IEND", b"")),
    "cut.jpg": encoded(COLOUR, "JPEG")[:-900],
    "cut.png": encoded(COLOUR, "PNG")[:3000],
    "empty.png": b"",
    "one.png": encoded(COLOUR.resize((1, 1)), "PNG"),
    "page.jpg": b"<!DOCTYPE html><html>not found</html>",
    "postscript.png": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\n(evil) run\n",
    "profile_bomb.png": png(48, 48, chunk(b"iCCP", b"a\0\0" + zlib.compress(bytes(1 << 26))), chunk(b"IEND", b"")),
    "ribbon.png": encoded(Image.new("L", (40_000, 2)), "PNG"),
    "text_bomb.png": png(48, 48, *[chunk(b"zTXt", b"a\0\0" + ZEROS)] * 40, chunk(b"IEND", b"")),
    "vector.jpg": b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>',
}


def fill(folder: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        (folder / name).write_bytes(data)
        (folder / name).with_suffix(".txt").write_text(f"a {Path(name).stem}")
    return folder


def test_the_rest_of_the_folder_trains(tmp_path):
    options = config(fill(tmp_path, USED | LEFT_OUT), skip_unreadable=True)
    found: list[Any] = []
    assert outcome(lambda: found.append(load_folder(options, CountingEncoder())), memory=1 << 29) == "read"
    (data,) = found
    assert data.names == tuple(sorted(USED))
    assert sorted(line.split()[1] for line in data.skipped) == sorted(LEFT_OUT)
    assert all(line.isprintable() and len(line) < 300 for line in data.skipped)
    assert sorted(line.split()[1] for line in survey_folder(options).skipped)  # what the headers show


@pytest.mark.parametrize("name", LEFT_OUT)
def test_one_that_cannot_be_used_is_named(tmp_path, name):
    options = config(fill(tmp_path, {name: LEFT_OUT[name], "good.png": USED["deep.png"]}))
    with pytest.raises(InputError, match=f"picture {name} "):
        load_folder(options, CountingEncoder())


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ("a fox".encode("utf-16-le"), ""),  # without its mark: valid UTF-8 with null bytes
        ("ein Füchschen".encode("latin-1"), "is not UTF-8 text"),
        ("狐".encode("shift-jis"), "is not UTF-8 text"),
        (b"\xff\xfea", "is not UTF-16 text"),
        (b"word " * 200_000, "has more than 65536 bytes"),
        (b"\x1b]0;title\x07 fox", ""),
    ],
)
def test_captions_in_other_encodings_and_of_a_megabyte(tmp_path, data, words):
    fill(tmp_path, {"deep.png": USED["deep.png"], "turned.jpg": USED["turned.jpg"]})
    (tmp_path / "deep.txt").write_bytes(data)
    read = outcome(lambda: load_folder(config(tmp_path), CountingEncoder()), memory=1 << 28)
    assert read == ("refused" if words else "read")
    if words:
        with pytest.raises(InputError, match=f"caption deep.txt {words}"):
            load_folder(config(tmp_path), CountingEncoder())
