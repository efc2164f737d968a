from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import pytest
from PIL import Image

from trilora_core.config_data import PriorConfig
from trilora_core.data.prior import ensure_prior, prior_key
from trilora_core.data.sources import scan_folder
from trilora_core.errors import InputError


class Painter:
    """A Previewer whose pictures tell their seed, and which can break off."""

    def __init__(self, most: int = 1000) -> None:
        self.asked: list[tuple[str, int]] = []
        self.most = most

    def preview(self, prompts: Sequence[str], seeds: Sequence[int]) -> list[Image.Image]:
        assert len(prompts) == len(seeds) == 1
        if len(self.asked) == self.most:
            raise KeyboardInterrupt
        self.asked.append((prompts[0], seeds[0]))
        return [Image.new("RGB", (16, 16), (seeds[0] % 256, 7, 9))]


def config(folder: Path, **changes) -> PriorConfig:
    return PriorConfig(**{"folder": str(folder), "prompt": "a photo of a dog", "count": 4, "seed": 10, **changes})


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_draws_into_a_new_folder_what_is_told_in_the_files(tmp_path):
    folder, painter, heard = tmp_path / "new" / "dogs", Painter(), []
    given = config(folder, prompt="a dog\n\n  a  dog – asleep \n", count=3)
    assert ensure_prior(given, painter, lambda *told: heard.append(told), base="small") == (0, 3)
    assert painter.asked == [("a dog", 10), ("a dog – asleep", 11), ("a dog", 12)]
    assert heard == [(0, 3), (1, 3), (2, 3), (3, 3)]
    assert names(folder) == [f"prior_0000{i}.{kind}" for i in range(3) for kind in ("png", "txt")]
    assert (folder / "prior_00001.txt").read_text(encoding="utf-8") == "a dog – asleep\n"
    with Image.open(folder / "prior_00001.png") as picture:
        assert picture.text == {
            "trilora.prompt": "a dog – asleep",
            "trilora.seed": "11",
            "trilora.base": "small",
        }
        assert picture.getpixel((0, 0)) == (11, 7, 9)


def test_a_second_run_draws_nothing(tmp_path):
    ensure_prior(config(tmp_path), Painter())
    before = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    painter, heard = Painter(), []
    assert ensure_prior(config(tmp_path), painter, lambda *told: heard.append(told)) == (4, 0)
    assert painter.asked == heard == []
    assert {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == before


def test_an_interrupted_run_goes_on_where_it_stopped(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        ensure_prior(config(tmp_path), Painter(most=2))
    assert names(tmp_path) == [f"prior_0000{i}.{kind}" for i in range(2) for kind in ("png", "txt")]
    painter = Painter()
    assert ensure_prior(config(tmp_path), painter) == (2, 2)
    assert [seed for _, seed in painter.asked] == [12, 13]


def test_a_deleted_picture_comes_back_the_same(tmp_path):
    ensure_prior(config(tmp_path), Painter())
    gone = tmp_path / "prior_00001.png"
    before = gone.read_bytes()
    gone.unlink()
    painter = Painter()
    assert ensure_prior(config(tmp_path), painter) == (3, 1)
    assert painter.asked == [("a photo of a dog", 11)] and gone.read_bytes() == before


def test_a_larger_count_goes_on_with_what_is_there(tmp_path):
    ensure_prior(config(tmp_path, count=2), Painter())
    painter = Painter()
    assert ensure_prior(config(tmp_path, count=3), painter) == (2, 1)
    assert [seed for _, seed in painter.asked] == [12]


def test_what_training_sees_counts(tmp_path):
    seen = ("mine.JPG", "1_dog/other.webp")
    for name in (*seen, ".hidden.png", ".cache/no.png", "notes.txt", "unread/no.png", "looks_like.png/x"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"")
    painter = Painter()
    assert ensure_prior(config(tmp_path), painter) == (2, 2)
    assert [seed for _, seed in painter.asked] == [10, 11]
    assert len(scan_folder(tmp_path).sources) == 4


@pytest.mark.parametrize("name", [".hidden.png", ".cache/no.png", "looks_like.png/x"])
def test_what_is_no_picture_does_not_count(tmp_path, name):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_bytes(b"")
    assert ensure_prior(config(tmp_path), Painter()) == (0, 4)


def test_pictures_where_training_does_not_look_are_told(tmp_path):
    (tmp_path / "dogs").mkdir()
    (tmp_path / "dogs" / "a.png").write_bytes(b"")
    painter = Painter()
    with pytest.raises(InputError, match=r"has no pictures; its subfolder dogs is not read, name it 1_dogs"):
        ensure_prior(config(tmp_path), painter)
    assert painter.asked == []


@pytest.mark.parametrize("count", [0, 1, 2])
def test_more_pictures_than_wanted_stay(tmp_path, count):
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(b"")
    painter = Painter()
    assert ensure_prior(config(tmp_path, count=count), painter) == (2, 0)
    assert painter.asked == [] and names(tmp_path) == ["a.png", "b.png"]


def test_a_caption_without_its_picture_is_no_picture(tmp_path):
    (tmp_path / "prior_00000.txt").write_text("left by a run that was cut off")
    assert ensure_prior(config(tmp_path, count=1), Painter()) == (0, 1)
    assert (tmp_path / "prior_00000.txt").read_text() == "a photo of a dog\n"


def test_nothing_is_drawn_for_a_folder_that_cannot_be_written_to(tmp_path):
    (tmp_path / "file").write_text("in the way")
    painter = Painter()
    with pytest.raises(InputError, match=r"cannot write to .*file: it is a file; choose a folder"):
        ensure_prior(config(tmp_path / "file"), painter)
    with pytest.raises(InputError, match=r"cannot write to the folder .*below: .*; choose one that you can write to"):
        ensure_prior(config(tmp_path / "file" / "below"), painter)
    assert painter.asked == []


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_folder(tmp_path):
    tmp_path.chmod(0o555)
    painter = Painter()
    with pytest.raises(InputError, match="cannot write to the folder"):
        ensure_prior(config(tmp_path), painter)
    assert painter.asked == []


def test_bad_input(tmp_path):
    with pytest.raises(InputError, match=r"^prior.folder is empty; name the folder of the class pictures"):
        ensure_prior(PriorConfig(folder=" ", prompt="a dog", count=1), Painter())
    nowhere = tmp_path / "nowhere"
    with pytest.raises(InputError, match=r"nowhere has none, and prior.count is 0; put pictures into it, or give"):
        ensure_prior(config(nowhere, count=0), Painter())
    assert not nowhere.exists()


def test_the_key_names_what_the_pictures_depend_on(tmp_path):
    settings = {"steps": 20, "cfg": 7.0}
    key = prior_key("base", config(tmp_path), settings)
    assert len(key) == 12 and set(key) <= set("0123456789abcdef")
    assert key == prior_key("base", config(tmp_path / "other", count=9), {"cfg": 7.0, "steps": 20})
    assert key == prior_key("base", config(tmp_path, prompt=" a photo  of a dog\n"), settings)
    others = [
        prior_key("another", config(tmp_path), settings),
        prior_key("base", config(tmp_path, prompt="a photo of a cat"), settings),
        prior_key("base", config(tmp_path, seed=11), settings),
        prior_key("base", config(tmp_path), {"steps": 21, "cfg": 7.0}),
        prior_key("base", config(tmp_path), {}),
    ]
    assert len({key, *others}) == 6
