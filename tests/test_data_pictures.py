"""Finding, opening and fitting pictures."""

from __future__ import annotations

import io
from pathlib import Path

import numpy
import pytest
import torch
from PIL import Image

from trilora_core.data import pictures
from trilora_core.data.pictures import fit_square, list_pictures, open_picture, to_tensor
from trilora_core.errors import InputError


def encode(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def test_listing_is_natural_case_insensitive_and_without_hidden_or_other_files(tmp_path: Path) -> None:
    for name in ("10.PNG", "2.png", "1.JPeG", "b.webp", "a.bmp", "c.jpg", ".hidden.png", "notes.txt", "x.gif"):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "folder.png").mkdir()
    assert [path.name for path in list_pictures(tmp_path)] == ["1.JPeG", "2.png", "10.PNG", "a.bmp", "b.webp", "c.jpg"]


def test_listing_mixes_names_that_start_with_digits_and_letters(tmp_path: Path) -> None:
    names = ["1.png", "1a.png", "a1.png", "a02.png", "a2.png", "a10b.png"]
    for name in reversed(names):
        (tmp_path / name).write_bytes(b"")
    assert [path.name for path in list_pictures(tmp_path)] == names


def test_folder_errors_say_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no picture folder was given"):
        list_pictures("")
    with pytest.raises(InputError, match=r"gone does not exist; check the path"):
        list_pictures(tmp_path / "gone")
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match=r"is a file; wanted the folder"):
        list_pictures(tmp_path / "file")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"empty has no pictures; put files that end in \.png \.jpg \.jpeg"):
        list_pictures(tmp_path / "empty")


def test_exif_rotation_is_applied() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: shown rotated by 90 degrees
    data = encode(Image.new("RGB", (40, 20), "red"), "JPEG", exif=exif)
    assert open_picture(data, "a.jpg").size == (20, 40)


def test_alpha_lies_over_white() -> None:
    for mode in ("RGBA", "LA"):
        image = Image.new("RGBA", (20, 20), (0, 0, 0, 0)).convert(mode)
        image.putpixel((3, 4), (10, 10, 10, 255) if mode == "RGBA" else (10, 255))
        got = open_picture(encode(image), "a.png")
        assert got.mode == "RGB" and got.getpixel((0, 0)) == (255, 255, 255) and got.getpixel((3, 4)) == (10, 10, 10)


def test_palette_with_and_without_transparency() -> None:
    image = Image.new("P", (20, 20), 1)
    image.putpalette([0, 0, 0, 10, 200, 30] + [0] * 762)
    assert open_picture(encode(image), "a.png").getpixel((0, 0)) == (10, 200, 30)
    assert open_picture(encode(image, transparency=1), "a.png").getpixel((0, 0)) == (255, 255, 255)


@pytest.mark.parametrize("kind", ["1", "L", "CMYK"])
def test_other_modes_become_rgb(kind: str) -> None:
    image = Image.new("RGB", (20, 20), "white").convert(kind)
    data = encode(image, "JPEG" if kind == "CMYK" else "PNG")
    assert open_picture(data, "a").getpixel((5, 5)) == (255, 255, 255)


def test_sixteen_bit_gray_is_scaled_not_clipped() -> None:
    image = Image.fromarray(numpy.full((20, 20), 128 * 257, dtype=numpy.uint16))
    assert open_picture(encode(image), "a.png").getpixel((0, 0)) == (128, 128, 128)


def test_broken_pictures_are_named() -> None:
    good = encode(Image.effect_noise((64, 64), 50).convert("RGB"))
    with pytest.raises(InputError, match=r"picture a.png cannot be read \(unknown format\); repair it"):
        open_picture(b"not a picture", "a.png")
    for cut in (40, len(good) // 2):
        with pytest.raises(InputError, match=r"picture b.png cannot be read"):
            open_picture(good[:cut], "b.png")
    with pytest.raises(InputError, match=r"picture c.png cannot be read"):
        open_picture(good[:60] + bytes(60) + good[120:], "c.png")


def test_absurd_sizes_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=r"picture thin.png has 40000x2 pixels; wanted a shorter side of at least 16"):
        open_picture(encode(Image.new("RGB", (40000, 2))), "thin.png")
    with pytest.raises(InputError, match=r"has 1000x20 pixels"):
        open_picture(encode(Image.new("RGB", (1000, 20))), "a.png")
    data = encode(Image.new("1", (400, 400)))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(InputError, match=r"picture bomb.png is too large .*scale it down or take it out"):
        open_picture(data, "bomb.png")


def test_a_picture_above_our_own_limit_is_refused_even_where_pillow_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    monkeypatch.setattr(pictures, "LARGEST_PIXELS", 100_000)
    with pytest.raises(InputError, match=r"picture big.png has 400x300 pixels; wanted at most 100,000; scale it down"):
        open_picture(encode(Image.new("1", (400, 300))), "big.png")


def test_fit_keeps_the_centre_of_the_longer_side() -> None:
    pixels = numpy.zeros((32, 96, 3), numpy.uint8)
    pixels[:, 32:64] = 200
    for image in (Image.fromarray(pixels), Image.fromarray(pixels.transpose(1, 0, 2))):
        fitted = numpy.asarray(fit_square(image, 16))
        assert fitted.shape == (16, 16, 3)
        assert (fitted[1:-1, 1:-1] > 195).all()  # beyond the edge lie real pixels, which the filter sees


def test_fit_leaves_a_picture_of_the_right_size_as_it_is() -> None:
    image = Image.effect_noise((48, 48), 80).convert("RGB")
    assert fit_square(image, 48).tobytes() == image.tobytes()


def test_fit_down_is_antialiased() -> None:
    stripes = numpy.zeros((64, 64, 3), numpy.uint8)
    stripes[:, ::2] = 255
    fitted = numpy.asarray(fit_square(Image.fromarray(stripes), 16))
    assert abs(fitted.astype(int) - 128).max() < 12


def test_to_tensor_shape_and_range() -> None:
    image = Image.new("RGB", (6, 4), (255, 0, 51))
    tensor = to_tensor(image)
    assert tensor.shape == (3, 4, 6) and tensor.dtype == torch.float32
    assert torch.equal(tensor[:, 0, 0], torch.tensor([1.0, 0.0, 0.2]))
