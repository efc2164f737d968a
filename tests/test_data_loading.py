"""Pictures and captions of a folder or of memory into a data set."""

from __future__ import annotations

import os
import random
import shutil
from pathlib import Path

import numpy
import pytest
import torch
from PIL import Image

from tests.counting import CountingEncoder, config, fill, noise_picture
from trilora_core.config_data import CaptionConfig, FramingConfig, MaskConfig
from trilora_core.data import DiskStore, MemoryStore, load_folder, load_images, loading, survey_folder
from trilora_core.errors import InputError

GIB = 2**30


def latents(data):
    return [data.sample(index, random.Random(0)).latents for index in range(len(data))]


# --- folders ------------------------------------------------------------------


def test_a_folder_becomes_latents_and_conditioning(tmp_path: Path) -> None:
    fill(tmp_path / "set")
    encoder, reports = CountingEncoder(), []
    data = load_folder(config(tmp_path / "set"), encoder, progress=lambda done, total: reports.append((done, total)))
    assert encoder.texts == ["a lamp", "a fox"], "equal captions are encoded once"
    assert encoder.sizes == [(1, 3, 16, 16)] * 6, "one by one: no result may depend on its neighbours"
    assert data.names == tuple(f"{index}.png" for index in range(6))
    assert all(latent.shape == (3, 2, 2) and latent.dtype == torch.float32 for latent in latents(data))
    assert data.captions == ("a lamp", "a fox") * 3 and data.skipped == ()
    assert reports[0] == (0, 12) and reports[-1] == (14, 14)
    assert [done for done, _ in reports] == sorted(done for done, _ in reports)


def test_latents_can_be_trained_on_though_the_caller_is_in_inference_mode(tmp_path: Path) -> None:
    fill(tmp_path)
    for store in (MemoryStore(), DiskStore(tmp_path / "cache" / "data.sqlite", GIB)):
        with torch.inference_mode():
            data = load_folder(config(tmp_path), CountingEncoder(), store)
        weight = torch.ones(1, requires_grad=True)
        (latents(data)[0] * weight).sum().backward()
        assert weight.grad is not None


def test_a_store_on_the_disk_gives_what_memory_gives(tmp_path: Path) -> None:
    fill(tmp_path / "set")
    options = config(tmp_path / "set", framing=FramingConfig(crop="random", flip=True))
    memory = load_folder(options, CountingEncoder())
    disk = load_folder(options, CountingEncoder(), DiskStore(tmp_path / "data.sqlite", GIB))
    assert memory.content_hash == disk.content_hash
    for index in range(len(memory)):
        for seed in range(20):
            one, other = (data.sample(index, random.Random(seed)) for data in (memory, disk))
            assert torch.equal(one.latents, other.latents) and one.cond == other.cond


def test_content_hash_follows_the_content_and_not_the_place(tmp_path: Path) -> None:
    fill(tmp_path / "one")
    shutil.copytree(tmp_path / "one", tmp_path / "two")

    def hashed(folder: str = "two", encoder: CountingEncoder | None = None, **changes: object) -> str:
        return load_folder(config(tmp_path / folder, **changes), encoder or CountingEncoder()).content_hash

    first = hashed("one")
    assert hashed() == first
    others = {
        hashed(resolution=24),
        hashed(encoder=CountingEncoder(vae="another")),
        hashed(encoder=CountingEncoder(clip="another")),
        hashed(captions=CaptionConfig(dropout=0.5)),
        hashed(captions=CaptionConfig(prefix="style")),
        hashed(framing=FramingConfig(flip=True)),
        hashed(max_train_samples=2),
        hashed(trigger_word="fox"),
    }
    (tmp_path / "two" / "3.txt").write_text("a wolf")
    others.add(hashed())
    Image.new("RGB", (32, 32)).save(tmp_path / "one" / "3.png")
    others.add(hashed("one"))
    assert len({first, *others}) == 11


def test_a_broken_picture_stops_or_is_skipped_and_named(tmp_path: Path) -> None:
    fill(tmp_path, 4)
    (tmp_path / "1.png").write_bytes(b"broken")  # seen at the header
    whole = (tmp_path / "2.png").read_bytes()
    (tmp_path / "2.png").write_bytes(whole[: len(whole) // 2])  # seen only when it is decoded
    with pytest.raises(InputError, match=r"picture 1.png cannot be read \(unknown format\)"):
        load_folder(config(tmp_path), CountingEncoder())
    for store in (MemoryStore(), DiskStore(tmp_path / "cache.sqlite", GIB)):
        for _ in range(2):  # what is broken stays broken when the store knows the rest
            data = load_folder(config(tmp_path, skip_unreadable=True), CountingEncoder(), store)
            assert data.names == ("0.png", "3.png") and data.captions == ("a lamp", "a fox")
            assert len(data.skipped) == 2 and "1.png" in data.skipped[0] and "2.png" in data.skipped[1]
    (tmp_path / "1.png").unlink()
    with pytest.raises(InputError, match=r"picture 2.png cannot be read"):
        load_folder(config(tmp_path), CountingEncoder())


def test_copies_of_a_broken_picture_are_left_out_too(tmp_path: Path) -> None:
    fill(tmp_path, 2)
    whole = (tmp_path / "1.png").read_bytes()
    for name in ("1", "2", "3"):
        (tmp_path / f"{name}.png").write_bytes(whole[: len(whole) // 2])
    data = load_folder(config(tmp_path, skip_unreadable=True, trigger_word="x"), CountingEncoder())
    assert data.names == ("0.png",) and len(latents(data)) == 1
    assert [text.split()[1] for text in data.skipped] == ["1.png", "2.png", "3.png"]


def test_a_resolution_that_fits_no_bucket_is_no_fault_of_a_picture(tmp_path: Path) -> None:
    fill(tmp_path, 1)
    with pytest.raises(InputError, match=r"^resolution 20 is not a multiple of 8; choose 16 or 24"):
        load_folder(config(tmp_path, resolution=20, skip_unreadable=True), CountingEncoder())


def test_a_picture_too_small_for_a_bucket_is_named_or_skipped(tmp_path: Path) -> None:
    fill(tmp_path, 2, size=(64, 64))
    noise_picture(0, (40, 40)).save(tmp_path / "small.png")
    options = config(tmp_path, resolution=512, trigger_word="x")
    with pytest.raises(InputError, match=r"small.png: the picture has 40x40 pixels, less than the smallest bucket"):
        load_folder(options, CountingEncoder())
    data = load_folder(config(tmp_path, resolution=512, trigger_word="x", skip_unreadable=True), CountingEncoder())
    assert len(data) == 2 and "small.png" in data.skipped[0]


def test_a_folder_of_broken_pictures_is_an_error_even_when_skipping(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(b"broken")
    with pytest.raises(InputError, match=r"none of the 2 pictures can be used; the first: picture a.png"):
        load_folder(config(tmp_path, trigger_word="fox", skip_unreadable=True), CountingEncoder())


def test_caption_errors_come_before_any_encoding(tmp_path: Path) -> None:
    fill(tmp_path)
    (tmp_path / "5.txt").unlink()
    encoder = CountingEncoder()
    with pytest.raises(InputError, match=r"picture 5.png has no caption"):
        load_folder(config(tmp_path), encoder)
    assert encoder.sizes == []
    assert load_folder(config(tmp_path, trigger_word="fox style"), encoder).captions[5] == "fox style"


def test_repeats_and_subsets_of_kohya_folders(tmp_path: Path) -> None:
    fill(tmp_path / "3_fox", 2)
    fill(tmp_path / "1_lamp", 1)
    (tmp_path / "1_lamp" / "0.txt").unlink()
    data = load_folder(config(tmp_path), CountingEncoder())
    assert [(item.name, item.repeats, item.caption) for item in data.items] == [
        ("1_lamp/0.png", 1, "lamp"),
        ("3_fox/0.png", 3, "a lamp"),
        ("3_fox/1.png", 3, "a fox"),
    ]
    assert data.epoch_size == 7


def test_a_survey_knows_everything_but_the_tensors(tmp_path: Path) -> None:
    fill(tmp_path, 3)
    surveyed, loaded = survey_folder(config(tmp_path)), load_folder(config(tmp_path), CountingEncoder())
    assert [(item.name, item.caption, item.frames) for item in surveyed.items] == [
        (item.name, item.caption, item.frames) for item in loaded.items
    ]
    assert surveyed.items[0].open().size == (32, 40)


# --- what is encoded again ----------------------------------------------------


@pytest.fixture
def cached(tmp_path: Path):
    """Load the folder once; calling it loads again with a new store object, as another run would."""
    fill(tmp_path / "set")
    path = tmp_path / "cache" / "data.sqlite"

    def load(encoder: CountingEncoder | None = None, **changes: object) -> tuple[CountingEncoder, list[torch.Tensor]]:
        encoder = encoder or CountingEncoder()
        data = load_folder(config(tmp_path / "set", **changes), encoder, DiskStore(path, GIB))
        return encoder, latents(data)

    load()
    return load


def test_a_second_run_encodes_nothing(cached, monkeypatch) -> None:
    monkeypatch.setattr(loading, "open_picture", None)  # nothing may be decoded either
    encoder, _ = cached()
    assert encoder.sizes == [] and encoder.texts == []


def test_an_edited_picture_is_encoded_again(cached, tmp_path: Path) -> None:
    _, before = cached()
    noise_picture(99).save(tmp_path / "set" / "2.png")
    encoder, after = cached()
    assert len(encoder.sizes) == 1 and encoder.texts == []
    assert not torch.equal(before[2], after[2])
    assert all(torch.equal(before[index], after[index]) for index in (0, 1, 3, 4, 5))


def test_an_edit_that_hides_behind_the_same_time_and_size_is_noticed(cached, tmp_path: Path) -> None:
    path = tmp_path / "set" / "2.png"
    pixels = numpy.array(Image.open(path))
    Image.fromarray(pixels).save(path, compress_level=0)
    os.utime(path, ns=(10**18, 10**18))
    cached()
    size = path.stat().st_size
    Image.fromarray(255 - pixels).save(path, compress_level=0)
    os.utime(path, ns=(10**18, 10**18))
    assert path.stat().st_size == size
    encoder, _ = cached()
    assert len(encoder.sizes) == 1


def test_an_edited_caption_is_encoded_again(cached, tmp_path: Path) -> None:
    (tmp_path / "set" / "2.txt").write_text("a wolf")
    encoder, _ = cached()
    assert encoder.sizes == [] and encoder.texts == ["a wolf"]


def test_a_renamed_picture_is_not_encoded_again(cached, tmp_path: Path) -> None:
    for ending in ("png", "txt"):
        (tmp_path / "set" / f"2.{ending}").rename(tmp_path / "set" / f"new.{ending}")
    encoder, _ = cached()
    assert encoder.sizes == [] and encoder.texts == []


@pytest.mark.parametrize(
    ("changes", "encoder", "pictures", "texts"),
    [
        ({"resolution": 24}, CountingEncoder(), 6, 0),
        ({"framing": FramingConfig(flip=True)}, CountingEncoder(), 6, 0),  # the mirrored ones
        ({"captions": CaptionConfig(suffix="at night")}, CountingEncoder(), 0, 2),
        ({"captions": CaptionConfig(weights=True)}, CountingEncoder(), 0, 2),
        ({"captions": CaptionConfig(dropout=0.1)}, CountingEncoder(), 0, 1),  # the empty caption
        ({"max_train_samples": 3}, CountingEncoder(), 0, 0),
        ({}, CountingEncoder(vae="another"), 6, 0),
        ({}, CountingEncoder(clip="another"), 0, 2),
    ],
)
def test_only_what_an_option_changes_is_encoded_again(cached, changes, encoder, pictures, texts) -> None:
    encoder, _ = cached(CountingEncoder(encoder.picture_fingerprint, encoder.caption_fingerprint), **changes)
    assert (len(encoder.sizes), len(encoder.texts)) == (pictures, texts)


def test_equal_pictures_are_encoded_once(tmp_path: Path) -> None:
    fill(tmp_path, 2)
    shutil.copy(tmp_path / "0.png", tmp_path / "copy.png")
    encoder = CountingEncoder()
    data = load_folder(config(tmp_path, trigger_word="a lamp"), encoder)
    assert len(data) == 3 and len(encoder.sizes) == 2


def test_no_picture_is_opened_once_it_is_encoded(tmp_path: Path) -> None:
    fill(tmp_path / "set")
    data = load_folder(config(tmp_path / "set"), CountingEncoder(), DiskStore(tmp_path / "data.sqlite", GIB))
    shutil.rmtree(tmp_path / "set")
    assert len(latents(data)) == 6


# --- crops, flips, masks ------------------------------------------------------


def test_flips_and_crops_are_seen(tmp_path: Path) -> None:
    fill(tmp_path, 1, size=(52, 40))
    framing = FramingConfig(buckets=False, crop="random", crops=3, flip=True)
    data = load_folder(config(tmp_path, resolution=32, framing=framing), CountingEncoder())
    seen = {data.sample(0, random.Random(seed)).latents.numpy().tobytes() for seed in range(60)}
    assert len(seen) == 6
    first, mirrored = (data.store.get(data.items[0].latents[index]) for index in (0, 3))
    assert torch.allclose(first.flip(-1), mirrored, atol=2e-3)


def test_conditioning_is_told_where_the_crop_lies(tmp_path: Path) -> None:
    fill(tmp_path, 1, size=(52, 40))
    data = load_folder(config(tmp_path, resolution=32, framing=FramingConfig(buckets=False)), CountingEncoder())
    cond = data.sample(0, random.Random(0)).cond
    assert cond["size"] == (32, 32) and cond["corner"] == (
        4,
        0,
    )  # 52 x 40 -> 41.6 x 32: 4.8 too far


def test_masks_of_a_folder(tmp_path: Path) -> None:
    fill(tmp_path / "set", 2, size=(32, 32))
    (tmp_path / "masks").mkdir()
    half = numpy.zeros((32, 32), dtype=numpy.uint8)
    half[:, 16:] = 255
    Image.fromarray(half).save(tmp_path / "masks" / "1.png")
    masks = MaskConfig("folder", str(tmp_path / "masks"), floor=0.25)
    encoder = CountingEncoder()
    data = load_folder(config(tmp_path / "set", masks=masks), encoder)
    assert data.sample(0, random.Random(0)).mask is None
    mask = data.sample(1, random.Random(0)).mask
    assert mask.shape == (1, 2, 2) and torch.allclose(mask[0], torch.tensor([[0.25, 1.0], [0.25, 1.0]]), atol=0.05)
    assert len(encoder.sizes) == 2


def test_a_mask_goes_where_its_picture_goes(tmp_path: Path) -> None:
    (tmp_path / "masks").mkdir()
    bright = numpy.zeros((40, 52, 3), dtype=numpy.uint8)
    bright[:20, 26:] = 255
    Image.fromarray(bright).save(tmp_path / "a.png")
    Image.fromarray(bright[..., 0]).save(tmp_path / "masks" / "a.png")
    framing = FramingConfig(buckets=False, crop="random", flip=True)
    masks = MaskConfig("folder", str(tmp_path / "masks"))
    data = load_folder(
        config(tmp_path, resolution=32, trigger_word="x", framing=framing, masks=masks), CountingEncoder()
    )
    for seed in range(30):
        sample = data.sample(0, random.Random(seed))
        assert torch.allclose(sample.mask[0], sample.latents[0], atol=2e-3)


def test_alpha_as_mask(tmp_path: Path) -> None:
    pixels = numpy.full((32, 32, 4), 255, dtype=numpy.uint8)
    pixels[:16, :, 3] = 0
    Image.fromarray(pixels).save(tmp_path / "a.png")
    noise_picture(0, (32, 32)).save(tmp_path / "b.png")
    data = load_folder(config(tmp_path, trigger_word="x", masks=MaskConfig("alpha")), CountingEncoder())
    mask = data.sample(0, random.Random(0)).mask
    assert torch.allclose(mask[0], torch.tensor([[0.0, 0.0], [1.0, 1.0]]), atol=0.05)
    assert data.sample(1, random.Random(0)).mask is None
    assert load_folder(config(tmp_path, trigger_word="x"), CountingEncoder()).sample(0, random.Random(0)).mask is None


def test_an_edited_mask_is_read_again_without_the_picture_being_encoded(tmp_path: Path) -> None:
    fill(tmp_path / "set", 1, size=(32, 32))
    (tmp_path / "masks").mkdir()
    Image.new("L", (32, 32), 255).save(tmp_path / "masks" / "0.png")
    options = config(tmp_path / "set", masks=MaskConfig("folder", str(tmp_path / "masks")))
    path = tmp_path / "data.sqlite"
    load_folder(options, CountingEncoder(), DiskStore(path, GIB))
    Image.new("L", (32, 32), 128).save(tmp_path / "masks" / "0.png")
    encoder = CountingEncoder()
    data = load_folder(options, encoder, DiskStore(path, GIB))
    assert encoder.sizes == [] and torch.allclose(data.sample(0, random.Random(0)).mask, torch.tensor(128 / 255))


def test_masks_that_cannot_be_meant_are_refused(tmp_path: Path) -> None:
    fill(tmp_path / "set", 1, size=(32, 32))
    (tmp_path / "masks").mkdir()
    options = config(tmp_path / "set", masks=MaskConfig("folder", str(tmp_path / "masks")))
    Image.new("L", (16, 32), 255).save(tmp_path / "masks" / "0.png")
    with pytest.raises(InputError, match=r"mask 0.png has 16x32 pixels, its picture 0.png has 32x32; make them the"):
        load_folder(options, CountingEncoder())
    Image.new("L", (32, 32), 0).save(tmp_path / "masks" / "0.png")
    with pytest.raises(InputError, match=r"the mask of 0.png is all black: nothing of it would be learned"):
        load_folder(options, CountingEncoder())


# --- captions -----------------------------------------------------------------


def test_a_black_mask_does_not_take_the_same_picture_without_one_along(tmp_path: Path) -> None:
    fill(tmp_path / "set", 1)
    shutil.copy(tmp_path / "set" / "0.png", tmp_path / "set" / "bare.png")
    (tmp_path / "masks").mkdir()
    Image.new("L", (32, 40), 0).save(tmp_path / "masks" / "0.png")
    masks, encoder = MaskConfig("folder", str(tmp_path / "masks")), CountingEncoder()
    data = load_folder(config(tmp_path / "set", masks=masks, skip_unreadable=True, trigger_word="x"), encoder)
    assert data.names == ("bare.png",) and len(latents(data)) == len(encoder.sizes) == 1


def test_dropout_shows_the_empty_caption_in_its_share(tmp_path: Path) -> None:
    fill(tmp_path, 1)
    data = load_folder(config(tmp_path, captions=CaptionConfig(dropout=0.3)), CountingEncoder())
    texts = [data.sample(0, random.Random(seed)).cond["text"] for seed in range(1000)]
    assert set(texts) == {"", "a lamp"} and 250 < texts.count("") < 350


def test_shuffled_tags_are_seen_in_several_orders(tmp_path: Path) -> None:
    fill(tmp_path, 1)
    (tmp_path / "0.txt").write_text("style, red, tall, old")
    options = CaptionConfig(shuffle=True, keep_tags=1, variants=5)
    data = load_folder(config(tmp_path, captions=options), CountingEncoder())
    texts = {data.sample(0, random.Random(seed)).cond["text"] for seed in range(100)}
    assert len(texts) == 5
    assert {tuple(sorted(text.split(", "))) for text in texts} == {("old", "red", "style", "tall")}
    assert all(text.startswith("style, ") for text in texts)


# --- pictures in memory -------------------------------------------------------


def test_images_in_memory_equal_the_same_pictures_in_files(tmp_path: Path) -> None:
    fill(tmp_path, 3)
    pictures = [numpy.asarray(Image.open(tmp_path / f"{index}.png")) for index in range(3)]
    images = torch.from_numpy(numpy.stack(pictures)).float() / 255
    from_files = load_folder(config(tmp_path), CountingEncoder())
    in_memory = load_images(images, from_files.captions, config(tmp_path), CountingEncoder())
    assert all(torch.equal(a, b) for a, b in zip(latents(in_memory), latents(from_files), strict=True))
    assert in_memory.captions == from_files.captions and in_memory.names[0] == "picture_1"


def test_captions_of_images_may_be_one_for_all_or_the_trigger_word(tmp_path: Path) -> None:
    images = torch.rand(3, 20, 20, 3)
    options = config(tmp_path, trigger_word="fox")
    assert load_images(images, ["a cat"], options, CountingEncoder()).captions == ("a cat",) * 3
    assert load_images(images, [], options, CountingEncoder()).captions == ("fox",) * 3
    assert load_images(images, ["a", " ", "c"], options, CountingEncoder()).captions == ("a", "fox", "c")


def test_masks_of_images_may_be_one_for_all(tmp_path: Path) -> None:
    images, masks = torch.rand(2, 16, 16, 3), torch.rand(2, 16, 16)
    options = config(tmp_path, trigger_word="fox")
    one = load_images(images, [], options, CountingEncoder(), masks=masks[:1])
    each = load_images(images, [], options, CountingEncoder(), masks=masks)
    seen = [data.sample(1, random.Random(0)).mask for data in (one, each)]
    for mask, source in zip(seen, masks, strict=True):
        wanted = torch.nn.functional.avg_pool2d((source * 255).round()[None] / 255, 8)
        assert torch.allclose(mask, wanted, atol=1e-5)


def test_wrong_images_and_captions_are_refused(tmp_path: Path) -> None:
    options = config(tmp_path)
    with pytest.raises(InputError, match=r"shape \(2, 3, 8, 8\); wanted \(pictures, height, width, 3\)"):
        load_images(torch.rand(2, 3, 8, 8), ["a"], options, CountingEncoder())
    with pytest.raises(InputError, match=r"2 captions for 3 pictures; give one per picture, one for all, or none"):
        load_images(torch.rand(3, 20, 20, 3), ["a", "b"], options, CountingEncoder())
    with pytest.raises(InputError, match=r"picture picture_1 has no caption"):
        load_images(torch.rand(1, 20, 20, 3), [""], options, CountingEncoder())
    with pytest.raises(InputError, match=r"the mask of picture_1 has 10x20 pixels, the picture 20x20"):
        load_images(torch.rand(1, 20, 20, 3), ["a"], options, CountingEncoder(), masks=torch.rand(1, 20, 10))
    with pytest.raises(InputError, match=r"masks have the shape \(3, 20, 20\); wanted"):
        load_images(torch.rand(2, 20, 20, 3), ["a"], options, CountingEncoder(), masks=torch.rand(3, 20, 20))
    broken = torch.rand(1, 20, 20, 3)
    broken[0, 0, 0, 0] = float("nan")
    with pytest.raises(InputError, match=r"picture_1 has values that are not finite"):
        load_images(broken, ["a"], options, CountingEncoder())


def test_a_survey_goes_on_where_training_would_stop(tmp_path: Path) -> None:
    fill(tmp_path, 3)
    (tmp_path / "0.txt").unlink()
    (tmp_path / "1.png").write_bytes(b"broken")
    reports: list[tuple[int, int]] = []
    data = survey_folder(config(tmp_path), progress=lambda done, total: reports.append((done, total)))
    assert [(item.name, item.caption, item.written) for item in data.items] == [
        ("0.png", "", False),
        ("2.png", "a lamp", True),
    ]
    assert len(data.skipped) == 1 and "1.png" in data.skipped[0]
    assert reports == [(0, 6), (1, 6), (2, 6)]
