"""Finding, inspecting, opening and fitting pictures."""

from __future__ import annotations

import io
import random
import struct
import zlib
from collections.abc import Callable

import numpy
import pytest
import torch
from PIL import Image, ImageCms, ImageOps, PngImagePlugin, features

from trilora_core.data import pictures
from trilora_core.data.pictures import (
    ENDINGS,
    Header,
    inspect_picture,
    open_alpha,
    open_mask,
    open_picture,
    to_tensor,
)
from trilora_core.errors import InputError

RED, GREEN, BLUE, WHITE, BLACK = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255), (0, 0, 0)
needs_lcms = pytest.mark.skipif(not features.check_module("littlecms2"), reason="this Pillow has no ImageCms")


def encode(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def png(depth: int, colour: int, row: bytes, size: tuple[int, int] = (20, 20), extra: bytes = b"") -> bytes:
    """A PNG with equal rows, of the kinds that Pillow reads but does not write; `extra` comes before the pixels."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", *size, depth, colour, 0, 0, 0))
    pixels = chunk(b"IDAT", zlib.compress((b"\0" + row) * size[1] if row else b""))
    return b"\x89PNG\r\n\x1a\n" + header + extra + pixels + chunk(b"IEND", b"")


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def near(image: Image.Image, at: tuple[int, int], wanted: tuple[int, ...], by: int = 2) -> bool:
    got = image.getpixel(at)
    assert isinstance(got, tuple) and len(got) == len(wanted)
    return all(abs(a - b) <= by for a, b in zip(got, wanted, strict=True))


AVIF = "avif" in features.get_supported_modules()  # older Pillows do not know of it


def test_avif_is_listed_where_it_can_be_opened() -> None:
    assert (".avif" in ENDINGS) == AVIF


def upright() -> Image.Image:
    image = Image.new("RGB", (48, 32), WHITE)
    image.paste(RED, (0, 0, 24, 16))
    image.paste(BLUE, (24, 16, 48, 32))
    return image


# What a camera stores so that a viewer, which turns it by the orientation, shows `upright`.
STORED = {
    1: lambda image: image,
    2: lambda image: image.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
    3: lambda image: image.transpose(Image.Transpose.ROTATE_180),
    4: lambda image: image.transpose(Image.Transpose.FLIP_TOP_BOTTOM),
    5: lambda image: image.transpose(Image.Transpose.TRANSPOSE),
    6: lambda image: image.transpose(Image.Transpose.ROTATE_90),
    7: lambda image: image.transpose(Image.Transpose.TRANSVERSE),
    8: lambda image: image.transpose(Image.Transpose.ROTATE_270),
}


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"] + ["AVIF"] * AVIF)
@pytest.mark.parametrize("orientation", STORED)
def test_every_orientation_is_turned_upright(kind: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"TIFF": {}, "PNG": {}, "WEBP": {"lossless": True}}.get(kind, {"quality": 95})
    data = encode(STORED[orientation](upright()), kind, exif=exif, **options)
    assert inspect_picture(data, "a") == Header(48, 32, False)
    image = open_picture(data, "a")
    assert image.size == (48, 32)
    assert near(image, (8, 6), RED, 6) and near(image, (40, 26), BLUE, 6) and near(image, (40, 6), WHITE, 6)
    assert open_mask(data, "a").size == (48, 32) and open_mask(data, "a").getpixel((40, 6)) > 250


def test_an_orientation_behind_the_pixels_of_a_png_is_found_from_its_header() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    early = encode(Image.new("RGB", (48, 32)), exif=exif)
    at = early.index(b"eXIf") - 4
    length = 12 + struct.unpack(">I", early[at : at + 4])[0]
    end = early.index(b"IEND") - 4
    late = early[:at] + early[at + length : end] + early[at : at + length] + early[end:]
    assert inspect_picture(late, "a.png") == Header(32, 48, False) and open_picture(late, "a.png").size == (32, 48)


def test_an_orientation_in_xmp_counts_as_pillow_counts_it() -> None:
    xmp = PngImagePlugin.PngInfo()
    xmp.add_itxt("XML:com.adobe.xmp", '<rdf:Description tiff:Orientation="8"/>')
    data = encode(Image.new("RGB", (48, 32)), pnginfo=xmp)
    with Image.open(io.BytesIO(data)) as image:
        size = ImageOps.exif_transpose(image).size
    assert inspect_picture(data, "a.png")[:2] == open_picture(data, "a.png").size == size == (32, 48)


def test_broken_exif_leaves_the_picture_as_it_is_stored() -> None:
    data = encode(Image.new("RGB", (48, 32), RED), "JPEG", exif=b"Exif\0\0nothing of the kind")
    assert inspect_picture(data, "a.jpg") == Header(48, 32, False) and near(open_picture(data, "a.jpg"), (1, 1), RED)


def test_the_header_is_read_without_the_pixels() -> None:
    noise = Image.effect_noise((300, 200), 80).convert("RGB")
    for kind in ("PNG", "JPEG", "BMP", "GIF", "TIFF"):
        data = encode(noise, kind)
        cut = data if kind == "TIFF" else data[: len(data) // 2]  # Pillow writes the header of a TIFF last
        assert inspect_picture(cut, "a") == Header(300, 200, False)
        if kind != "TIFF":
            with pytest.raises(InputError, match=r"picture a cannot be read"):
                open_picture(cut, "a")


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


def test_transparency_is_known_from_the_header_and_opened_upright() -> None:
    for mode in ("RGBA", "LA", "PA"):
        image = Image.new("RGBA", (24, 20), (50, 50, 50, 0))
        image.paste((50, 50, 50, 200), (0, 0, 12, 20))
        # PA is written only by way of a palette with transparency
        data = encode(image.quantize(4) if mode == "PA" else image.convert(mode))
        assert inspect_picture(data, "a") == Header(24, 20, True), mode
        alpha = open_alpha(data, "a")
        assert alpha is not None and alpha.mode == "L" and alpha.size == (24, 20), mode
        assert alpha.getpixel((2, 2)) == 200 and alpha.getpixel((20, 2)) == 0, mode
        white = round(255 - (255 - 50) * 200 / 255)
        picture = open_picture(data, "a")
        assert near(picture, (2, 2), (white,) * 3) and picture.getpixel((20, 2)) == WHITE, mode
    exif = Image.Exif()
    exif[0x0112] = 6
    alpha = open_alpha(encode(image, exif=exif), "a.png")
    assert alpha is not None and alpha.size == (20, 24) and alpha.getpixel((2, 2)) == 200


def test_a_palette_with_several_transparencies() -> None:
    image = Image.new("P", (20, 20), 2)
    image.putpalette([0, 0, 0, 10, 200, 30, 100, 100, 100] + [0] * 759)
    data = encode(image, transparency=bytes([255, 255, 51]))
    assert open_alpha(data, "a.png").getpixel((3, 3)) == 51
    assert near(open_picture(data, "a.png"), (3, 3), (224, 224, 224))


def test_a_colour_that_stands_for_transparent() -> None:
    gray8 = png(8, 0, b"\x80" * 10 + b"\x20" * 10, extra=chunk(b"tRNS", b"\0\x80"))
    gray16 = png(16, 0, b"\x80\x80" * 10 + b"\x20\x20" * 10, extra=chunk(b"tRNS", b"\x80\x80"))
    colour = png(8, 2, bytes([9, 8, 7]) * 10 + b"\x20\x20\x20" * 10, extra=chunk(b"tRNS", b"\0\x09\0\x08\0\x07"))
    for data in (gray8, gray16, colour):
        assert inspect_picture(data, "a.png").alpha
        alpha, picture = open_alpha(data, "a.png"), open_picture(data, "a.png")
        assert alpha.getpixel((0, 0)) == 0 and alpha.getpixel((19, 0)) == 255
        assert picture.getpixel((0, 0)) == WHITE and picture.getpixel((19, 0)) == (32, 32, 32)


def test_opaque_pictures_have_no_alpha() -> None:
    for mode in ("1", "L", "P", "RGB"):
        data = encode(Image.new("RGB", (20, 20), WHITE).convert(mode))
        assert open_alpha(data, "a.png") is None and not inspect_picture(data, "a.png").alpha


@pytest.mark.parametrize("kind", ["1", "L", "CMYK"])
def test_other_modes_become_rgb(kind: str) -> None:
    image = Image.new("RGB", (20, 20), "white").convert(kind)
    image.paste(0 if kind != "CMYK" else (0, 0, 0, 255), (0, 0, 8, 20))
    for data in (encode(image, "JPEG" if kind == "CMYK" else "PNG"), encode(image, "TIFF")):
        picture = open_picture(data, "a")
        assert picture.mode == "RGB" and near(picture, (15, 5), WHITE) and near(picture, (2, 5), BLACK)


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
@pytest.mark.parametrize("order", ["<u2", ">u2"])
def test_sixteen_bit_gray_is_scaled_not_clipped(kind: str, order: str) -> None:
    values = numpy.array([0, 128, 129, 128 * 257, 65534, 65535], numpy.uint16)  # 128.5 is where 0 becomes 1
    pixels = numpy.repeat(values[None], 20, 0).repeat(4, 1)
    image = Image.frombytes("I;16" if order == "<u2" else "I;16B", (24, 20), pixels.astype(order).tobytes())
    if (kind, order) == ("PNG", ">u2"):
        data = png(16, 0, pixels[0].astype(">u2").tobytes(), (24, 20))
    else:
        data = encode(image, kind)
    picture, mask = open_picture(data, "a"), open_mask(data, "a")
    for index, wanted in enumerate((0, 0, 1, 128, 255, 255)):
        assert picture.getpixel((4 * index, 3)) == (wanted,) * 3 and mask.getpixel((4 * index, 3)) == wanted


def test_sixteen_bit_colour_and_alpha() -> None:
    colour = struct.pack(">HHH", 128 * 257, 200 * 257, 10 * 257) * 20
    assert open_picture(png(16, 2, colour), "a.png").getpixel((3, 3)) == (128, 200, 10)
    clear = png(16, 6, struct.pack(">HHHH", 128 * 257, 200 * 257, 10 * 257, 51 * 257) * 20)
    assert open_alpha(clear, "a.png").getpixel((3, 3)) == 51
    gray = png(16, 4, struct.pack(">HH", 128 * 257, 0) * 20)
    assert inspect_picture(gray, "a.png").alpha and open_picture(gray, "a.png").getpixel((3, 3)) == WHITE


def test_gray_values_of_other_ranges() -> None:
    half = numpy.linspace(0, 1, 400, dtype=numpy.float32).reshape(20, 20)
    picture = open_picture(encode(Image.fromarray(half), "TIFF"), "a.tif")
    assert picture.getpixel((0, 0)) == BLACK and picture.getpixel((19, 19)) == WHITE
    assert picture.getpixel((10, 10)) == (134, 134, 134)
    wide = numpy.full((20, 20), 65535, numpy.int32)
    assert open_picture(encode(Image.fromarray(wide), "TIFF"), "a.tif").getpixel((0, 0)) == WHITE
    for pixels, told in (
        (half * 300 - 1, r"from -1 to 299, wanted 0 to 1\)"),
        (wide + 1, r"from 65536 to .* to 65535\)"),
    ):
        with pytest.raises(InputError, match=r"picture a.tif cannot be read \(its gray values go " + told):
            open_picture(encode(Image.fromarray(pixels), "TIFF"), "a.tif")
    half[3, 3] = numpy.nan
    with pytest.raises(InputError, match=r"gray values go from nan to nan"):
        open_picture(encode(Image.fromarray(half), "TIFF"), "a.tif")


INKS = [((0, 0, 0, 0), WHITE), ((255, 0, 0, 0), (0, 255, 255)), ((0, 255, 255, 0), RED), ((0, 0, 0, 255), BLACK)]


@pytest.mark.parametrize(("ink", "colour"), INKS)
def test_cmyk_and_ycck_jpegs_have_their_colours(ink: tuple[int, ...], colour: tuple[int, ...]) -> None:
    adobe = encode(Image.new("CMYK", (20, 20), ink), "JPEG", quality=100)  # inverted, as Adobe's programs write it
    at = adobe.index(b"Adobe")
    assert adobe[at + 11] == 0  # CMYK
    assert near(open_picture(adobe, "a.jpg"), (9, 9), colour, 4)
    luma = Image.new("RGB", (1, 1), ink[:3]).convert("YCbCr").getpixel((0, 0))
    stored = Image.new("CMYK", (20, 20), (*(255 - value for value in luma), ink[3]))
    ycck = bytearray(encode(stored, "JPEG", quality=100))
    ycck[ycck.index(b"Adobe") + 11] = 2  # its three colours are luma and chroma
    assert near(open_picture(bytes(ycck), "a.jpg"), (9, 9), colour, 4)
    assert (
        abs(
            open_mask(bytes(ycck), "a.jpg").getpixel((9, 9))
            - Image.new("RGB", (1, 1), colour).convert("L").getpixel((0, 0))
        )
        < 4
    )


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"] + ["AVIF"] * AVIF)
def test_animations_show_their_first_frame(kind: str) -> None:
    first, second = Image.new("RGB", (40, 24), RED), Image.new("RGB", (40, 24), BLUE)
    data = encode(first, kind, save_all=True, append_images=[second])
    with Image.open(io.BytesIO(data)) as image:
        assert image.n_frames == 2
    assert inspect_picture(data, "a") == Header(40, 24, False)
    assert near(open_picture(data, "a"), (20, 12), RED, 6) and open_mask(data, "a").size == (40, 24)


def test_a_transparent_gif_is_known_from_its_header() -> None:
    image = Image.new("P", (20, 20), 1)
    image.putpalette([*RED, *BLUE] + [0] * 762)
    image.paste(0, (0, 0, 10, 20))
    data = encode(image, "GIF", transparency=1, save_all=True, append_images=[Image.new("P", (20, 20), 0)])
    assert inspect_picture(data, "a.gif") == Header(20, 20, True)
    alpha = open_alpha(data, "a.gif")
    assert alpha.getpixel((2, 2)) == 255 and alpha.getpixel((15, 2)) == 0
    assert open_picture(data, "a.gif").getpixel((15, 2)) == WHITE
    assert open_picture(data, "a.gif").getpixel((2, 2)) == RED


def swapped_profile() -> bytes:
    """An RGB profile in which red and green have changed places, under another name than that of sRGB."""
    data = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    entries = {bytes(data[at : at + 4]): at for at in range(132, 132 + 12 * struct.unpack(">I", data[128:132])[0], 12)}
    red, green = entries[b"rXYZ"] + 4, entries[b"gXYZ"] + 4
    data[red : red + 8], data[green : green + 8] = data[green : green + 8], data[red : red + 8]
    return bytes(data).replace("sRGB".encode("utf-16-be"), "test".encode("utf-16-be"))


@needs_lcms
def test_an_embedded_profile_is_brought_to_srgb_with_alpha_and_palette() -> None:
    profile = swapped_profile()
    for image in (Image.new("RGB", (20, 20), RED), Image.new("RGBA", (20, 20), (*RED, 255))):
        assert near(open_picture(encode(image, icc_profile=profile), "a.png"), (3, 3), GREEN)
    palette = Image.new("RGB", (20, 20), RED).quantize(2)
    assert near(open_picture(encode(palette, icc_profile=profile), "a.png"), (3, 3), GREEN)
    clear = encode(Image.new("RGBA", (20, 20), (*RED, 0)), icc_profile=profile)
    assert open_picture(clear, "a.png").getpixel((3, 3)) == WHITE
    linear = bytearray(profile + b"curv" + bytes(4) + struct.pack(">IH", 1, 0x0100))
    linear[:4] = struct.pack(">I", len(linear))
    for name in (b"rTRC", b"gTRC", b"bTRC"):
        at = linear.index(name) + 4
        linear[at : at + 8] = struct.pack(">II", len(profile), 14)
    gray = encode(Image.new("L", (20, 20), 55), icc_profile=bytes(linear))
    assert near(open_picture(gray, "a.png"), (3, 3), (128, 128, 128), 3)


@needs_lcms
def test_a_gray_profile_is_applied_to_gray_pictures_only() -> None:
    curve = b"curv" + bytes(4) + struct.pack(">IH", 1, 0x0100) + bytes(2)  # linear light
    white = b"XYZ " + bytes(4) + struct.pack(">iii", 63190, 65536, 54061)
    tags = struct.pack(">I", 2) + b"wtpt" + struct.pack(">II", 156, 20) + b"kTRC" + struct.pack(">II", 176, len(curve))
    body = tags + white + curve
    head = struct.pack(">I4sI4s4s4s", 128 + len(body), b"lcms", 0x02400000, b"mntr", b"GRAY", b"XYZ ")
    head += bytes(12) + b"acsp" + bytes(28) + struct.pack(">iii", 63190, 65536, 54061)
    profile = head.ljust(128, b"\0") + body
    for mode in ("L", "LA"):
        gray = Image.new("L", (20, 20), 55).convert(mode)
        assert near(open_picture(encode(gray, icc_profile=profile), "a.png"), (3, 3), (128, 128, 128), 3)
    colour = encode(Image.new("RGB", (20, 20), (55, 55, 55)), icc_profile=profile)
    assert open_picture(colour, "a.png").getpixel((3, 3)) == (55, 55, 55)


def test_profiles_that_are_srgb_broken_or_of_another_kind_change_nothing() -> None:
    noise = Image.effect_noise((32, 32), 80).convert("RGB")
    profiles = [b"nothing of the kind", b"\0" * 200]
    if features.check_module("littlecms2"):
        srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
        lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
        profiles += [srgb, srgb[: len(srgb) // 2], lab, swapped_profile()[:300]]
    for profile in profiles:
        assert open_picture(encode(noise, icc_profile=profile), "a.png").tobytes() == noise.tobytes()
    assert near(open_picture(encode(Image.new("CMYK", (20, 20)), "JPEG", icc_profile=profiles[-2]), "a"), (3, 3), WHITE)


def test_a_mask_of_any_kind_is_gray_and_lies_over_black() -> None:
    image = Image.new("RGBA", (30, 20), (*WHITE, 255))
    image.paste((*WHITE, 0), (0, 0, 10, 20))  # transparent, though its colour is white
    image.paste((*BLACK, 255), (10, 0, 20, 20))
    for data in (encode(image), encode(image.convert("LA")), encode(image.quantize(4))):
        mask = open_mask(data, "m.png")
        assert mask.mode == "L" and [mask.getpixel((x, 9)) for x in (2, 15, 25)] == [0, 0, 255]
    assert open_mask(encode(Image.new("RGB", (20, 20), (100, 100, 100))), "m.png").getpixel((0, 0)) == 100
    assert open_mask(encode(Image.new("1", (20, 20), 1)), "m.png").getpixel((0, 0)) == 255


def test_the_content_decides_not_the_name() -> None:
    jpeg = encode(Image.new("RGB", (20, 20), RED), "JPEG")
    assert near(open_picture(jpeg, "wrong.png"), (3, 3), RED) and inspect_picture(jpeg, "wrong.png").width == 20


def test_decoders_that_run_other_programs_stay_out() -> None:
    postscript = encode(Image.new("RGB", (20, 20)), "EPS")
    for function in (inspect_picture, open_picture, open_alpha, open_mask):
        with pytest.raises(InputError, match=r"picture a.png cannot be read \(unknown format\)"):
            function(postscript, "a.png")


def test_an_empty_file_says_so() -> None:
    for function in (inspect_picture, open_picture, open_alpha, open_mask):
        with pytest.raises(InputError, match=r"picture a.png cannot be read \(the file is empty\); repair it"):
            function(b"", "a.png")


@needs_lcms
@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF"] + ["AVIF"] * AVIF)
def test_damaged_bytes_give_a_picture_or_our_error(kind: str) -> None:
    draw = random.Random(kind)
    exif = Image.Exif()
    exif[0x0112] = 6
    options = {} if kind in ("GIF", "BMP") else {"exif": exif, "icc_profile": swapped_profile()}
    good = encode(Image.effect_noise((40, 32), 80).convert("RGB"), kind, **options)
    for function in (inspect_picture, open_picture, open_alpha, open_mask):
        for _ in range(60):
            bad = bytearray(good[: draw.choice((len(good), draw.randrange(len(good))))])
            for _ in range(draw.randrange(6)):
                if bad:
                    bad[draw.randrange(min(len(bad), draw.choice((64, 400, len(good)))))] = draw.randrange(256)
            try:
                function(bytes(bad), "a")
            except InputError as error:
                assert "picture a " in str(error)


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


@pytest.mark.parametrize("function", [inspect_picture, open_picture, open_alpha, open_mask])
def test_sizes_are_refused_by_the_header_alone(function: Callable[[bytes, str], object]) -> None:
    def declared(width: int, height: int) -> bytes:
        return png(8, 2, b"", (width, height))  # not one pixel of what it declares

    with pytest.raises(InputError, match=r"picture bomb.png is too large .*exceeds limit.*; scale it down or take it"):
        function(declared(100_000, 100_000), "bomb.png")
    with pytest.raises(InputError, match=r"picture thin.png has 40000x2 pixels; wanted a shorter side of at least 16"):
        function(declared(40_000, 2), "thin.png")
    with pytest.raises(InputError, match=r"picture dot.png has 1x1 pixels; wanted .* at least 16 .*crop it or take it"):
        function(declared(1, 1), "dot.png")


def test_a_picture_above_our_own_limit_is_refused_even_where_pillow_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    monkeypatch.setattr(pictures, "LARGEST_PIXELS", 100_000)
    with pytest.raises(InputError, match=r"picture big.png has 400x300 pixels; wanted at most 100,000; scale it down"):
        open_picture(encode(Image.new("1", (400, 300))), "big.png")


def test_to_tensor_shape_and_range() -> None:
    image = Image.new("RGB", (6, 4), (255, 0, 51))
    tensor = to_tensor(image)
    assert tensor.shape == (3, 4, 6) and tensor.dtype == torch.float32
    assert torch.equal(tensor[:, 0, 0], torch.tensor([1.0, 0.0, 0.2]))
