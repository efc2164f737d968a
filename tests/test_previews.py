from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy
import pytest
import torch
from PIL import Image

from tests.test_train import CONFIG, go, make_run, same, values
from trilora_core.config import MonitorConfig
from trilora_core.errors import InputError
from trilora_core.previews import _thinned, draw_previews, draw_strip, preview_path
from trilora_core.protocols import Previewer

PROMPTS = ("red", "blue", "a very long prompt about " + "many words " * 40, "赤い猫")


class Painter:
    """Paints each picture in one colour, which tells seed and adapter, and disturbs random numbers as hosts do."""

    def __init__(self, run, size: tuple[int, int] = (40, 20)) -> None:
        self.run, self.size = run, size
        self.calls: list[tuple[Sequence[str], Sequence[int]]] = []

    def preview(self, prompts, seeds):
        self.calls.append((tuple(prompts), tuple(seeds)))
        torch.manual_seed(seeds[0])
        assert not torch.is_grad_enabled()
        with_adapter = float(self.run.trainable.trainable()[0].abs().sum())
        return [Image.new("RGB", self.size, (seed, int(with_adapter > 0) * 200, 30)) for seed in seeds]


def make(**options):
    monitor = MonitorConfig(preview_every=10, preview_prompts=PROMPTS, preview_seed=50, **options)
    run = make_run(replace(CONFIG, monitor=monitor))
    return run, Painter(run)


def test_every_prompt_has_its_seed_and_file(tmp_path):
    run, painter = make()
    assert isinstance(painter, Previewer)
    paths = draw_previews(run, painter, tmp_path / "a_previews")
    assert painter.calls == [(PROMPTS, (50, 51, 52, 53))]
    assert paths == [preview_path(tmp_path / "a_previews", 0, index) for index in range(4)]
    assert paths[3].name == "step_00000_3.png"
    for seed, path in enumerate(paths, start=50):
        with Image.open(path) as picture:
            assert picture.size == (40, 20) and picture.getpixel((0, 0))[0] == seed


def test_drawing_leaves_random_numbers_and_parameters_alone(tmp_path):
    run, painter = make()
    go(run, 3)
    before = values(run), torch.random.get_rng_state()
    draw_previews(run, painter, tmp_path)
    assert same(before[0], values(run)) and torch.equal(before[1], torch.random.get_rng_state())


def test_what_is_drawn_is_what_would_be_saved(tmp_path):
    """With a running mean, pictures show the mean."""
    run = make_run(replace(CONFIG, ema=0.9, monitor=MonitorConfig(preview_every=1, preview_prompts=("a",))))
    go(run, 5)
    seen = []

    class Looker:
        def preview(self, prompts, seeds):
            seen.append(values(run))
            return [Image.new("RGB", (8, 8))]

    draw_previews(run, Looker(), tmp_path)
    with run.as_saved():
        mean = values(run)
    assert same(seen[0], mean) and not same(mean, values(run))


def test_the_strip_has_a_row_for_each_prompt_and_a_column_for_each_step(tmp_path):
    run, painter = make()
    for step in (0, 10, 20):
        run.step = step
        draw_previews(run, painter, tmp_path)
    preview_path(tmp_path, 10, 1).unlink()  # somebody tidied up
    path = draw_strip(tmp_path, PROMPTS, [0, 10, 20])
    pixels = numpy.asarray(Image.open(path).convert("RGB"))
    pitch, top = 264, 36
    assert pixels.shape == (top + 4 * pitch, 4 * pitch, 3)
    for row in range(4):
        for column in range(3):
            middle = pixels[top + row * pitch + 128, pitch + column * pitch + 128]
            assert middle[0] == (255 if (row, column) == (1, 1) else 50 + row)
        assert (pixels[top + row * pitch : top + (row + 1) * pitch, :256] < 128).any(), "the prompt is written"
    assert [path.name for path in sorted(tmp_path.glob("strip*"))] == ["strip.png"]


def test_long_runs_show_some_of_their_steps():
    assert _thinned([0]) == [0] and _thinned([0, 5]) == [0, 5]
    many = _thinned(list(range(0, 1010, 10)))
    assert len(many) == 20 == len(set(many)) and (many[0], many[-1]) == (0, 1000)


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    run, painter = make()
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot write"):
        draw_previews(run, painter, tmp_path / "file")
