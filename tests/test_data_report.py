"""The report on a data set and its contact sheet: numbers, names, and what is drawn where."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image, ImageDraw

from trilora_core.config_data import DataConfig, FramingConfig, MaskConfig
from trilora_core.data import load_tensors, survey_folder
from trilora_core.data.dataset import Dataset
from trilora_core.data.lettering import fitted, lettered, wrapped
from trilora_core.data.report import Cropped, Small, Subset, report
from trilora_core.data.report_text import report_text
from trilora_core.data.sheet import PAPER, TILE, _shares, contact_sheet
from trilora_core.errors import InputError

RED, BLUE = (200, 30, 40), (20, 60, 190)


def picture(path: Path, size: tuple[int, int], colour: tuple[int, int, int] = RED, caption: str | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)
    if caption is not None:
        path.with_suffix(".txt").write_text(caption, encoding="utf-8")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """One of each problem; three pictures of 64 x 64 in all but colour."""
    root, dog = tmp_path / "set", tmp_path / "set" / "3_sks dog"
    picture(dog / "a.png", (64, 64), RED, "sks dog, running, grass")
    picture(dog / "b.png", (64, 64), RED, "sks dog, running, grass")  # a copy
    picture(dog / "c.png", (64, 64), BLUE)  # no caption
    picture(root / "tiny.png", (32, 32), (1, 2, 3), "sks dog, grass")
    picture(root / "wide.png", (1000, 100), (4, 5, 6), "A SKS DOG in a panorama")
    picture(root / "plain.png", (96, 64), (7, 8, 9), "asks a dog")  # "sks dog" is no part of it
    (root / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nno more")
    (root / "story.doc").write_text("once")
    return root


def config(folder: Path, **options: object) -> DataConfig:
    wanted = DataConfig(folder=str(folder), resolution=64, trigger_word="sks dog", skip_unreadable=True)
    return replace(wanted, **options)


def test_counts_and_problems(folder: Path) -> None:
    found = report(survey_folder(config(folder)))
    assert (found.pictures, found.looks, found.repeated) == (6, 12, 12)
    assert set(found.subsets) == {Subset("", 1, 3), Subset("sks dog", 3, 3)}
    assert [(entry.name, entry.caption) for entry in found.uncaptioned] == [("3_sks dog/c.png", "sks dog")]
    assert found.untriggered == ("plain.png",)
    assert found.small == (Small("tiny.png", (32, 32), (32, 32)),)
    assert found.duplicates == (("3_sks dog/a.png", "3_sks dog/b.png"),)
    assert (found.captions, found.shared_captions) == (5, 2)
    assert found.tags[:2] == (("sks dog", 4), ("grass", 3))
    assert len(found.skipped) == 1 and "broken.png" in found.skipped[0]
    assert any("story.doc" in note for note in found.notes)


def test_buckets_and_what_the_crop_takes(folder: Path) -> None:
    found = report(survey_folder(config(folder)))
    first = found.buckets[0]
    assert (first.size, len(first.names), first.cut, first.aspect_error) == ((64, 64), 3, 0.0, 0.0)
    assert sorted(name for entry in found.buckets for name in entry.names) == sorted(
        ("3_sks dog/a.png", "3_sks dog/b.png", "3_sks dog/c.png", "plain.png", "tiny.png", "wide.png")
    )
    assert {entry.names[0] for entry in found.alone} == {"plain.png", "tiny.png", "wide.png"}
    # the longest bucket is 4 : 1, the picture 10 : 1
    assert found.cropped == (Cropped("wide.png", pytest.approx(0.6)),)
    (wide,) = (entry for entry in found.buckets if "wide.png" in entry.names)
    assert (wide.size, wide.cut, wide.aspect_error) == ((128, 32), pytest.approx(0.6), pytest.approx(1.5))


def test_squares_lose_more_and_upscaling_is_told(folder: Path) -> None:
    framing = FramingConfig(buckets=False, upscale=True, crop="random", crops=2)
    found = report(survey_folder(config(folder, framing=framing)))
    assert [entry.name for entry in found.cropped] == ["wide.png", "plain.png"]
    assert found.cropped[1].cut == pytest.approx(1 / 3)
    assert found.small == (Small("tiny.png", (32, 32), (64, 64)),)
    assert (found.crops, found.alone) == (2, ())
    assert "enlarged" in found.text() and "Turn buckets on" in found.text() and "2 random crops" in found.text()


def test_text_names_what_to_look_at(folder: Path) -> None:
    text = report(survey_folder(config(folder, max_train_samples=5))).text()
    head, *lines = text.splitlines()
    assert head == "6 pictures · 5 looks in each epoch, drawn anew from 12 · resolution 64"
    assert max(map(len, lines)) <= 100
    for words in (
        "broken.png",
        'without a caption: the model sees "sks dog". Write one',
        "3_sks dog/c.png",
        'without the trigger word "sks dog"',
        "tiny.png (32 x 32)",
        "wide.png (60 % cut off)",
        "3_sks dog/a.png = 3_sks dog/b.png",
        "128 x 32",
        "story.doc",
    ):
        assert words in text
    assert text.index("broken.png") < text.index("Sizes they are seen at") < text.index("story.doc")
    assert "Masks" not in text


def test_a_sound_set_has_a_short_report(tmp_path: Path) -> None:
    for index in range(3):
        picture(tmp_path / f"{index}.png", (64, 64), (index, 0, 0), f"a fox number {index}")
    text = report(survey_folder(DataConfig(folder=str(tmp_path), resolution=64))).text()
    assert "No problems found." in text
    assert not any(title in text for title in ("Worth a look", "Folders", "Masks", "Notes", "trigger", "tags"))


def test_long_lists_are_cut_in_the_text_only(folder: Path) -> None:
    found = report(survey_folder(config(folder)))
    many = tuple(f"picture {index}.png" for index in range(500))
    long = replace(
        found,
        untriggered=many,
        small=tuple(Small(name, (9, 9), (8, 8)) for name in many),
        cropped=tuple(Cropped(name, 0.5) for name in many),
        duplicates=tuple((name, "copy of " + name) for name in many),
        skipped=many,
        notes=many,
        unmasked=many,
        masked=1,
        buckets=found.buckets * 100,
        subsets=found.subsets * 100,
        tags=tuple((name, 2) for name in many),
    )
    text = report_text(long)
    assert len(text.splitlines()) <= 70
    assert "… and 494 more" in text and "… and 497 more" in text
    assert len(json.loads(json.dumps(long.values()))["untriggered"]) == 500


def test_values_are_plain(folder: Path) -> None:
    values = json.loads(json.dumps(report(survey_folder(config(folder))).values()))
    assert values["pictures"] == 6
    assert values["buckets"][0]["size"] == [64, 64]
    assert values["config"]["resolution"] == 64


def test_names_cannot_steer_the_terminal(folder: Path) -> None:
    found = report(survey_folder(config(folder)))
    text = replace(found, untriggered=("a\x1b[31m.png", "b\udcff.png")).text()
    text.encode("utf-8")
    assert "\x1b" not in text and "a?[31m.png" in text


def with_masks(tmp_path: Path, floor: float = 0.0) -> DataConfig:
    """A blue picture whose left half counts, and a red one without a mask."""
    picture(tmp_path / "set" / "half.png", (64, 64), BLUE, "a fox")
    picture(tmp_path / "set" / "whole.png", (64, 64), RED, "a lamp")
    mask = Image.new("L", (64, 64))
    ImageDraw.Draw(mask).rectangle((0, 0, 31, 63), fill=255)
    (tmp_path / "masks").mkdir(exist_ok=True)
    mask.save(tmp_path / "masks" / "half.png")
    masks = MaskConfig("folder", str(tmp_path / "masks"), floor)
    return DataConfig(folder=str(tmp_path / "set"), resolution=64, masks=masks)


def test_masks_are_counted(tmp_path: Path) -> None:
    dataset = survey_folder(with_masks(tmp_path))
    found = report(dataset)
    assert (found.masked, found.unmasked) == (1, ("whole.png",))
    assert "1 picture with a mask" in found.text()
    none = replace(dataset, items=dataset.items[1:])
    assert "No picture has a mask" in report(none).text()


def tile_colour(sheet: Image.Image, x: float, y: float) -> tuple[int, int, int]:
    """The colour at a share of the first tile, which begins where the heading ends (cells of 128 pixels)."""
    left, top = first_tile(sheet)
    colour = sheet.getpixel((left + round(128 * x), top + round(128 * y)))
    assert isinstance(colour, tuple)
    return colour


def first_tile(sheet: Image.Image) -> tuple[int, int]:
    """The upper left corner of the first square tile: 128 pixels on end that are neither paper nor letters."""
    left = 128 // 9
    column = [sheet.getpixel((left + 1, y)) != PAPER for y in range(sheet.height)]
    run = next(y for y in range(sheet.height) if all(column[y : y + 128]))
    return left, run


def near(one: tuple[int, int, int], other: tuple[int, int, int]) -> bool:
    return max(abs(a - b) for a, b in zip(one, other, strict=True)) <= 3


def test_the_sheet_shows_pictures_and_darkens_what_a_mask_covers(tmp_path: Path) -> None:
    sheet = contact_sheet(survey_folder(with_masks(tmp_path)), cell=128)
    assert sheet.mode == "RGB"
    assert sheet.width == 4 * 128 + 5 * (128 // 9)
    assert near(tile_colour(sheet, 0.25, 0.5), BLUE)
    covered = tile_colour(sheet, 0.75, 0.5)
    assert not near(covered, BLUE) and sum(covered) < sum(BLUE)
    second = sheet.getpixel((first_tile(sheet)[0] + 128 + 128 // 9 + 64, first_tile(sheet)[1] + 64))
    assert near(second, RED)
    half = contact_sheet(survey_folder(with_masks(tmp_path, floor=0.5)), cell=128)
    assert sum(covered) < sum(tile_colour(half, 0.75, 0.5)) < sum(BLUE)


def test_the_sheet_shows_the_crop_that_is_trained_on(tmp_path: Path) -> None:
    path = tmp_path / "stripes.png"
    image = Image.new("RGB", (192, 64), RED)
    image.paste(BLUE, (64, 0, 128, 64))
    image.save(path)
    path.with_suffix(".txt").write_text("a flag")
    framing = FramingConfig(buckets=False)
    sheet = contact_sheet(survey_folder(DataConfig(str(tmp_path), 64, framing=framing)), cell=128)
    assert all(near(tile_colour(sheet, x, 0.8), BLUE) for x in (0.05, 0.5, 0.95))


def test_random_crops_get_insets(tmp_path: Path) -> None:
    picture(tmp_path / "wide.png", (256, 64), RED, "a flag")
    one = contact_sheet(survey_folder(DataConfig(str(tmp_path), 64, framing=FramingConfig(buckets=False))), cell=128)
    framing = FramingConfig(buckets=False, crop="random", crops=3)
    more = contact_sheet(survey_folder(DataConfig(str(tmp_path), 64, framing=framing)), cell=128)
    assert more.height - one.height == 3 + (128 - 2 * 3) // 3
    x, y = first_tile(more)
    assert near(more.getpixel((x + 40 + 3 + 20, y + 128 + 3 + 20)), RED)


def test_the_choice_is_even(tmp_path: Path) -> None:
    assert _shares([90, 9, 1], 10) == [8, 1, 1]
    assert _shares([90, 9, 1], 4) == [3, 1, 0]
    assert _shares([9, 9, 9, 9, 9, 9], 3) == [1, 1, 1, 0, 0, 0]
    assert _shares([3, 2], 60) == [3, 2]
    for index in range(9):
        picture(tmp_path / f"{index}.png", (64, 64), (20 * index, 200, 0), f"number {index}")
    sheet = contact_sheet(survey_folder(DataConfig(str(tmp_path), 64)), most=3, cell=64)
    top = max(range(sheet.height), key=lambda y: sum(sheet.getpixel((x, y))[1] > 190 for x in range(sheet.width)))
    seen = [sheet.getpixel((7 + 71 * place + 32, top))[0] // 20 for place in range(3)]
    assert seen == [1, 4, 7]


def test_only_shown_pictures_are_opened(tmp_path: Path) -> None:
    for index in range(8):
        picture(tmp_path / f"{index}.png", (64, 64), (20 * index, 200, 0), f"number {index}")
    dataset = survey_folder(DataConfig(str(tmp_path), 64))
    opened: list[str] = []

    def watched(dataset: Dataset) -> Dataset:
        def note(name: str) -> Image.Image:
            opened.append(name)
            return Image.new("RGB", (64, 64))

        items = tuple(replace(item, open=lambda name=item.name: note(name)) for item in dataset.items)
        return replace(dataset, items=items)

    contact_sheet(watched(dataset), most=2, cell=64)
    assert opened == ["2.png", "6.png"]


def test_a_picture_that_is_gone_gets_a_tile_that_says_so(tmp_path: Path) -> None:
    picture(tmp_path / "gone.png", (64, 64), RED, "a fox")
    dataset = survey_folder(DataConfig(str(tmp_path), 64))
    (tmp_path / "gone.png").unlink()
    sheet = contact_sheet(dataset, cell=128)
    assert tile_colour(sheet, 0.02, 0.98) == TILE


def test_latents_without_pictures() -> None:
    latents = [torch.zeros(4, 8, 8), torch.ones(4, 8, 8), torch.ones(4, 4, 8)]
    dataset = load_tensors(latents, [{"c": torch.zeros(1)}] * 3, captions=["a fox", "a lamp", "a tree"])
    found = report(dataset)
    assert [entry.size for entry in found.buckets] == [(4, 8, 8), (4, 4, 8)]
    assert found.uncaptioned == () and "latents 4 x 8 x 8" in found.text()
    assert "resolution" not in found.text() and "cut off" not in found.text()
    assert tile_colour(contact_sheet(dataset, cell=128), 0.5, 0.9) == TILE
    unknown = load_tensors(latents, [{"c": torch.zeros(1)}] * 3, config=DataConfig(trigger_word="sks"))
    assert report(unknown).untriggered == report(unknown).uncaptioned == ()


def test_numbers_too_small_to_draw(tmp_path: Path) -> None:
    picture(tmp_path / "a.png", (64, 64), RED, "a fox")
    dataset = survey_folder(DataConfig(str(tmp_path), 64))
    with pytest.raises(InputError, match="most is 0"):
        contact_sheet(dataset, most=0)


def test_text_is_fitted_and_wrapped() -> None:
    text, face = lettered("a long caption of many words, and then some more of them", 12)
    assert fitted("short", face, 100) == "short"
    cut = fitted(text, face, 100)
    assert cut.endswith("…") and face.getlength(cut) <= 100 and len(cut) > 8
    lines = wrapped(text, face, 100, 2)
    assert len(lines) == 2 and lines[1].endswith("…") and text.startswith(lines[0] + " ")
    assert all(face.getlength(line) <= 100 for line in lines)
    assert wrapped("unbroken" * 9, face, 60, 9)[0] and "".join(wrapped("unbroken" * 9, face, 60, 99)) == "unbroken" * 9
    assert wrapped("  ", face, 60, 2) == []


def test_letters_that_no_font_has_become_others() -> None:
    assert lettered("naïve fox", 12)[0] in ("naïve fox", "naive fox")
    assert lettered("fox \ue123", 12)[0] == "fox ?"  # private use: not printable
    assert lettered("plain", 12)[0] == "plain"


def test_pictures_that_training_stops_at_are_told_apart(tmp_path: Path) -> None:
    (tmp_path / "3_dog").mkdir()
    for name in ("a.png", "3_dog/b.png"):
        Image.new("RGB", (64, 64), "red").save(tmp_path / name)
    text = report(survey_folder(DataConfig(str(tmp_path), 64))).text()
    words = " ".join(text.split())
    assert 'without a caption: the model sees "dog", training stops at it, for want of a trigger word (1).' in words
