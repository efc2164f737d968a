from __future__ import annotations

from dataclasses import replace

import pytest
from PIL import Image

from tests.test_session import keep, watched
from tests.test_train import CONFIG, make_run
from trilora_core.config import MonitorConfig
from trilora_core.errors import InputError
from trilora_core.runlog import log_path
from trilora_core.runrecord import read_log

pytest.importorskip("matplotlib")
from trilora_core.plots_run import plot_run


def drawn(record, path) -> Image.Image:
    plot_run(record, path, title="Training of a")
    with Image.open(path) as picture:
        return picture.convert("RGB")


def colours(picture: Image.Image) -> int:
    return len(picture.getcolors(picture.width * picture.height))


def test_panels_are_those_that_were_watched(tmp_path):
    """One row of curves, and a second one with a heat map of many colours where spectra are in the log."""
    runs = {
        "plain": (make_run(replace(CONFIG, steps=12)), None),
        "validated": watched(replace(CONFIG, steps=12), validate_every=4),
        "looked": (make_run(replace(CONFIG, steps=12, monitor=MonitorConfig(spectrum_every=4))), None),
        "both": watched(replace(CONFIG, steps=12), validate_every=4, spectrum_every=4),
    }
    pictures = {}
    for name, (run, held_out) in runs.items():
        path = tmp_path / f"{name}.safetensors"
        keep(run, path, held_out=held_out)
        pictures[name] = drawn(read_log(log_path(path)), tmp_path / f"{name}.png")
    plain, validated, looked, both = pictures.values()
    assert plain.size == validated.size and looked.size == both.size
    assert plain.width == both.width and both.height > 1.7 * plain.height
    assert colours(looked) > 1.2 * colours(plain)
    assert plain.tobytes() != validated.tobytes() and looked.tobytes() != both.tobytes()


def test_short_and_odd_runs_are_drawn(tmp_path):
    run = make_run(replace(CONFIG, steps=1, monitor=MonitorConfig(spectrum_every=5)))
    path = tmp_path / "a.safetensors"
    keep(run, path)
    record = read_log(log_path(path))
    drawn(record, tmp_path / "a.png")
    record.looks = record.looks[:1]  # the start alone: nothing learned yet
    drawn(record, tmp_path / "start.png")
    record.looks = [replace(record.looks[0], layers={})]
    drawn(record, tmp_path / "nothing.png")
    record.measures = []
    record.steps = [replace(record.steps[0], loss=float("nan"), dropped="why")]
    drawn(record, tmp_path / "dropped.png")
    record.steps = []
    with pytest.raises(InputError, match="has no step yet"):
        drawn(record, tmp_path / "none.png")
    assert not (tmp_path / "none.png").exists()
