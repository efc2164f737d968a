"""Buckets, crops, and the views that are cut out of a picture."""

from __future__ import annotations

import hashlib
import random
from dataclasses import replace
from fractions import Fraction

import numpy
import pytest
from PIL import Image

from trilora_core.config_data import FramingConfig
from trilora_core.data.framing import Frame, bucket, bucket_step, frames
from trilora_core.errors import InputError

PLAIN = FramingConfig()
DIGEST = hashlib.sha256(b"a picture").digest()
GOLDEN = [(509, 0), (105, 0), (89, 0), (70, 0)]  # the first 4 of floor(513 · SHA-256(digest, 8 bytes of index) / 2^256)


def noise(width: int, height: int) -> Image.Image:
    pixels = numpy.random.default_rng(width * height).integers(0, 256, (height, width, 3), dtype=numpy.uint8)
    return Image.fromarray(pixels)


@pytest.mark.parametrize(
    ("resolution", "step"),
    [(512, 64), (1024, 64), (256, 32), (64, 8), (16, 8), (384, 48), (640, 64), (720, 48), (800, 40), (1000, 40)],
)
def test_the_automatic_step_is_about_an_eighth_of_the_resolution_and_divides_it(resolution: int, step: int) -> None:
    assert bucket_step(resolution, PLAIN) == step


def test_a_step_that_does_not_divide_the_resolution_is_refused_with_the_nearest_two() -> None:
    with pytest.raises(InputError, match=r"^resolution 500 is not a multiple of 8; choose 496 or 504$"):
        bucket(800, 800, 500, PLAIN)
    own = FramingConfig(step=96)
    with pytest.raises(InputError, match=r"^resolution 512 is not a multiple of 96; choose 480 or 576, or another fr"):
        bucket(800, 800, 512, own)
    with pytest.raises(
        InputError, match=r"^resolution 64 is not a multiple of 96; choose 96, or another framing.step$"
    ):
        frames(800, 800, 64, replace(own, buckets=False), DIGEST)


@pytest.mark.parametrize(
    ("shape", "at_512", "at_1024"),
    [
        ((4000, 4000), (512, 512), (1024, 1024)),
        ((6000, 4000), (640, 384), (1216, 832)),
        ((4000, 3000), (576, 448), (1152, 896)),
        ((3840, 2160), (640, 384), (1344, 768)),
        ((2160, 3840), (384, 640), (768, 1344)),
        ((5120, 2160), (768, 320), (1536, 640)),
        ((8000, 2000), (1024, 256), (2048, 512)),
        ((2000, 16000), (256, 1024), (512, 2048)),
    ],
)
def test_buckets_of_usual_shapes(shape: tuple[int, int], at_512: tuple[int, int], at_1024: tuple[int, int]) -> None:
    assert bucket(*shape, 512, PLAIN) == at_512
    assert bucket(*shape, 1024, PLAIN) == at_1024


def test_a_large_picture_keeps_the_area_and_loses_little_to_the_crop() -> None:
    draw = random.Random(0)
    for _ in range(400):
        resolution = draw.choice((256, 512, 768, 1024))
        long = draw.randint(4 * resolution, 8 * resolution)
        width, height = draw.choice(((long, long // draw.choice((1, 2, 3))), (long // 2, long)))
        wide, high = bucket(width, height, resolution, PLAIN)
        assert 0.8 * resolution**2 <= wide * high <= resolution**2
        shape, got = width / height, wide / high
        assert max(shape / got, got / shape) < 1.2


def test_the_nearest_shape_is_taken_by_ratio_and_of_one_shape_the_largest() -> None:
    # A search over everything that the rule allows, without the arithmetic of the module.
    area, step = 256**2, 32
    sides = range(128, 513, step)
    sizes = [(w, h) for w in sides for h in sides if w * h <= area]
    sizes = [(w, h) for w, h in sizes if (w + step, h) not in sizes or (w, h + step) not in sizes]
    draw = random.Random(1)
    for _ in range(300):
        width, height = draw.randint(600, 3000), draw.randint(600, 3000)

        def distance(size: tuple[int, int], shape: Fraction = Fraction(width, height)) -> tuple[Fraction, int]:
            ratio = Fraction(*size) / shape
            return max(ratio, 1 / ratio), -size[0] * size[1]

        assert distance(bucket(width, height, 256, PLAIN)) == min(map(distance, sizes))


def test_nothing_is_enlarged_unless_asked() -> None:
    grown = FramingConfig(upscale=True)
    assert bucket(300, 200, 512, PLAIN) == (256, 192)
    assert bucket(300, 200, 512, grown) == (640, 384)
    assert bucket(530, 500, 512, PLAIN) == (512, 448)
    assert bucket(64, 64, 512, PLAIN) == (64, 64)
    assert bucket(3000, 200, 512, PLAIN) == (1024, 192)  # never longer than twice the resolution
    assert bucket(20, 20, 512, grown) == (512, 512)


def test_without_buckets_there_is_one_square() -> None:
    square = FramingConfig(buckets=False)
    assert bucket(3000, 700, 512, square) == bucket(512, 512, 512, square) == (512, 512)
    assert bucket(3000, 500, 512, square) == (448, 448)
    assert bucket(3000, 500, 512, replace(square, upscale=True)) == (512, 512)


def test_a_picture_smaller_than_one_step_is_refused() -> None:
    for framing in (PLAIN, FramingConfig(buckets=False)):
        told = r"^the picture has 900x63 pixels, less than the smallest bucket 64x64; allow upscaling, or take it out$"
        with pytest.raises(InputError, match=told):
            bucket(900, 63, 512, framing)
        assert len(frames(900, 63, 512, replace(framing, upscale=True), DIGEST)) == 1


def test_invariants_of_every_frame() -> None:
    draw = random.Random(2)
    for _ in range(600):
        resolution = draw.choice((64, 256, 512, 720, 1024))
        framing = FramingConfig(
            buckets=draw.random() < 0.8,
            step=draw.choice((0, 0, 8, 16)),
            upscale=draw.random() < 0.3,
            crop=draw.choice(("center", "random")),
            crops=draw.randint(1, 9),
            flip=draw.random() < 0.5,
        )
        width, height = draw.randint(64, 4000), draw.randint(64, 4000)
        step = bucket_step(resolution, framing)
        views = frames(width, height, resolution, framing, draw.randbytes(32))
        assert len({view.key() for view in views}) == len(views)
        for view in views:
            (wide, high), (left, top, right, bottom) = view.size, view.box
            assert view.original == (width, height)
            assert wide % step == 0 and high % step == 0 and wide * high <= resolution**2
            assert max(wide, high) <= 2 * resolution
            assert 0 <= left < right <= width and 0 <= top < bottom <= height
            assert (right - left) / (bottom - top) == pytest.approx(wide / high, rel=1e-9)
            assert right - left == pytest.approx(width) or bottom - top == pytest.approx(height)  # covers
            if not framing.upscale:
                assert right - left >= wide - 1e-9 and bottom - top >= high - 1e-9


def test_the_centre_is_kept() -> None:
    (view,) = frames(1000, 500, 256, FramingConfig(buckets=False), DIGEST)
    assert view == Frame((256, 256), (250.0, 0.0, 750.0, 500.0), False, (1000, 500))
    (view,) = frames(500, 1000, 256, FramingConfig(buckets=False), DIGEST)
    assert view.box == (0.0, 250.0, 500.0, 750.0)


def test_random_crops_follow_from_the_digest_alone_and_reach_everywhere() -> None:
    framing = FramingConfig(buckets=False, crop="random", crops=4)
    views = frames(1024, 512, 512, framing, DIGEST)
    # Golden: the same on every machine, so that a cache stays valid when it is carried elsewhere.
    assert [view.corner for view in views] == GOLDEN
    assert frames(1024, 512, 512, replace(framing, crops=2), DIGEST) == views[:2]
    assert frames(1024, 512, 512, framing, bytes(32)) != views
    tall = frames(512, 1024, 512, framing, DIGEST)
    assert [view.corner for view in tall] == [(y, x) for x, y in GOLDEN]
    many = [
        view.corner[0] for index in range(500) for view in frames(1024, 512, 512, framing, index.to_bytes(32, "big"))
    ]
    assert min(many) < 5 and max(many) > 507 and numpy.mean(many) == pytest.approx(256, abs=15)
    assert numpy.histogram(many, 8, (0, 513))[0].min() > 200  # of 2000 in 8 equal parts


def test_there_are_no_more_random_crops_than_places() -> None:
    framing = FramingConfig(buckets=False, crop="random", crops=4)
    assert len(frames(512, 512, 512, framing, DIGEST)) == 1
    assert [view.corner for view in frames(514, 512, 512, framing, DIGEST)] == [(0, 0), (1, 0), (2, 0)]
    assert len({view.box for view in frames(516, 512, 512, framing, DIGEST)}) == 4


def test_flips_double_the_frames_in_the_same_order() -> None:
    framing = FramingConfig(buckets=False, crop="random", crops=3)
    plain = frames(900, 600, 256, framing, DIGEST)
    assert frames(900, 600, 256, replace(framing, flip=True), DIGEST) == plain + tuple(
        replace(view, flip=True) for view in plain
    )


def test_cut_is_the_plain_crop_where_nothing_is_scaled() -> None:
    image = noise(101, 64)
    views = frames(101, 64, 64, FramingConfig(buckets=False, crop="random", crops=3, flip=True), DIGEST)
    for view in views:
        left = round(view.box[0])
        wanted = image.crop((left, 0, left + 64, 64))
        if view.flip:
            wanted = wanted.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        assert view.cut(image).tobytes() == wanted.tobytes()


def test_cut_scales_once_and_masks_alike() -> None:
    image = Image.new("RGB", (300, 200), "black")
    image.paste("white", (100, 0, 200, 200))
    (view,) = frames(300, 200, 64, FramingConfig(buckets=False), DIGEST)
    for mode in ("RGB", "L"):
        cut = view.cut(image.convert(mode))
        assert cut.mode == mode and cut.size == (64, 64)
        columns = numpy.asarray(cut.convert("L"))[32]
        assert columns[8] == 0 and columns[32] == 255 and columns[56] == 0
        assert abs(int((columns > 127).sum()) - 32) <= 1
    stripes = numpy.zeros((256, 256, 3), numpy.uint8)
    stripes[:, ::2] = 255
    (view,) = frames(256, 256, 64, FramingConfig(buckets=False), DIGEST)
    assert abs(numpy.asarray(view.cut(Image.fromarray(stripes))).astype(int) - 128).max() < 12  # antialiased


def test_the_largest_offset_can_be_cut() -> None:
    draw = random.Random(3)
    framing = FramingConfig(buckets=False, crop="random", crops=10_000)
    for _ in range(20):  # Pillow refuses a box that ends a hair outside
        width, height = draw.randint(65, 700), draw.randint(65, 700)
        last = frames(width, height, 64, framing, DIGEST)[-1]
        assert last.cut(noise(width, height)).size == (64, 64)


def test_cut_refuses_an_image_of_another_size() -> None:
    (view,) = frames(300, 200, 64, PLAIN, DIGEST)
    with pytest.raises(
        InputError, match=r"^an image of 200x300 pixels cannot be cut as one of 300x200; scale it first$"
    ):
        view.cut(Image.new("L", (200, 300)))


def test_the_corner_is_told_in_pixels_of_the_scaled_and_mirrored_picture() -> None:
    view = Frame((64, 64), (40.0, 0.0, 168.0, 128.0), False, (256, 128))  # scaled to 128x64
    assert view.corner == (20, 0) and replace(view, flip=True).corner == (44, 0)
    assert Frame((64, 64), (0.0, 30.0, 64.0, 94.0), False, (64, 128)).corner == (0, 30)


def test_keys_tell_apart_what_gives_other_pixels() -> None:
    view = Frame((64, 64), (0.1, 0.0, 64.1, 64.0), False, (80, 64))
    others = [
        replace(view, size=(64, 32)),
        replace(view, box=(0.1 + 1e-16, 0.0, 64.1, 64.0)),
        replace(view, box=(0.1, 0.0, 64.10000000000001, 64.0)),
        replace(view, flip=True),
    ]
    assert view.key() == "64x64:0.1,0.0,64.1,64.0"
    assert len({view.key(), *(other.key() for other in others)}) == 5
    assert replace(view, box=(0, 0, 64, 64)).key() == replace(view, box=(0.0, 0.0, 64.0, 64.0)).key()


def test_no_side_is_shorter_than_half_the_resolution_rounded_up_to_the_step() -> None:
    assert bucket(4000, 1000, 192, FramingConfig(step=64)) == (256, 128)
