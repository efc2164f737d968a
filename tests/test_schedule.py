"""Keyframes, ranks by step, and bands that add up to what is wanted at every moment."""

from __future__ import annotations

import pytest

from trilora_core.errors import InputError
from trilora_core.schedule import CURVES, Band, Keyframe, RankStep, bands, keyframes, read_ranks


def strength_at(frames: tuple[Keyframe, ...], moment: float) -> float:
    """As the host reads keyframes: the last one that was reached, the first before all."""
    return ([frame for frame in frames if frame.start <= moment] or [frames[0]])[-1].strength


def test_constant_is_one_keyframe():
    assert keyframes(0.7, 0.2, "constant", 8) == (Keyframe(0.0, 0.7),)


@pytest.mark.parametrize("curve", [name for name in CURVES if name != "constant"])
def test_a_curve_begins_and_ends_where_it_should_and_goes_one_way(curve):
    frames = keyframes(1.0, -0.5, curve, 7)
    assert [frame.start for frame in frames] == [index / 7 for index in range(7)]
    strengths = [frame.strength for frame in frames]
    assert strengths[0] == 1.0 and strengths[-1] == pytest.approx(-0.5)
    assert strengths == sorted(strengths, reverse=True)


def test_the_shapes_of_the_curves():
    wanted = {"linear": 0.25, "ease in": 0.0625, "ease out": 0.4375, "ease in and out": 0.14645}
    found = {curve: keyframes(0.0, 1.0, curve, 5)[1].strength for curve in wanted}
    assert found == pytest.approx(wanted, abs=1e-5)


def test_ranks_are_read():
    assert read_ranks("", 16) == read_ranks(" ", 16) == ()
    assert read_ranks("4@0, all@0.5", 16) == (RankStep(0.0, 4), RankStep(0.5, 16))
    assert read_ranks("16 @ .25; 0@0.75,", 16) == (RankStep(0.25, 16), RankStep(0.75, 0))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("4", "ranks, character 1: found '4', expected a rank and where it starts, such as 4@0.5"),
        ("4@0, x@1", "ranks, character 6: found 'x', expected a rank"),
        ("4@0 16@0.5", "ranks, character 5: found '16', expected a comma or the end"),
        ("32@0", "ranks, character 1: found '32', expected a rank from 0 to 16, the adapter's highest, or all"),
        ("4@1.0", "ranks, character 3: found '1.0', expected a start below 1"),
        ("4@0.5, 8@0.5", "ranks, character 10: found '0.5', expected a start above 0.5 and below 1"),
        ("4@0,,8@0.5", "ranks, character 5: found ',', expected a rank"),
    ],
)
def test_a_typo_in_the_ranks_is_shown_where_it_is(text, said):
    with pytest.raises(InputError) as error:
        read_ranks(text, 16)
    assert str(error.value).startswith(said)


@pytest.mark.parametrize(
    ("frames", "text"),
    [
        (keyframes(1.0, 0.0, "linear", 5), "4@0, 16@0.5"),
        (keyframes(0.8, 0.8, "constant", 5), "16@0, 4@0.35, 8@0.7"),
        (keyframes(0.2, 1.5, "ease in", 3), "4@0.1, 0@0.9"),
        ((Keyframe(0.3, 0.5, 1), Keyframe(0.6, 2.0, 2)), "2@0, 16@0.45"),
    ],
)
def test_bands_add_up_at_every_moment(frames, text):
    steps = read_ranks(text, 16)
    parts = bands(frames, steps, 16)
    starts = [[frame.start for frame in part.keyframes] for part in parts]
    assert all(each == starts[0] for each in starts), "bands must change together"
    kept = [frame for frame in parts[0].keyframes if frame.guarantee]
    assert [frame.guarantee for frame in kept] == [frame.guarantee for frame in frames if frame.guarantee]
    for moment in [index / 100 for index in range(100)]:
        rank = ([step.rank for step in steps if step.start <= moment] or [0])[-1]
        for part in parts:
            wanted = strength_at(frames, moment) if part.last <= rank else 0.0
            assert strength_at(part.keyframes, moment) == wanted
    covered = [direction for part in parts for direction in range(part.first, part.last)]
    assert covered == list(range(max(step.rank for step in steps)))


def test_without_ranks_there_is_one_band_with_the_keyframes_as_they_are():
    frames = keyframes(1.0, 0.0, "linear", 4)
    assert bands(frames, (), 16) == (Band(0, 16, frames),)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ((float("nan"), 1.0, "linear", 4), "strength is nan"),
        ((1.0, float("inf"), "linear", 4), "strength_end is inf"),
        ((1.0, 1.0, "bent", 4), "curve is 'bent'; known: constant, linear"),
        ((1.0, 1.0, "linear", 1), "keyframe_count is 1; wanted a whole number from 2 up"),
    ],
)
def test_bad_values(values, said):
    with pytest.raises(InputError) as error:
        keyframes(*values)
    assert str(error.value).startswith(said)
