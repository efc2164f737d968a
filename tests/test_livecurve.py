from __future__ import annotations

import math
import sys
from itertools import pairwise

import pytest

from trilora_core.livecurve import POINTS, Curve, halved, mean_profile, plain


def filled(steps, limit=POINTS, loss=float):
    curve = Curve(limit)
    for step in range(1, steps + 1):
        curve.add(step, loss(step), step / 1000)
    return curve


def test_few_points_are_kept_as_they_are():
    assert filled(5, 5).points() == [[float(n), float(n), n / 1000] for n in range(1, 6)]
    assert Curve().points() == [] and len(Curve()) == 0


@pytest.mark.parametrize(("steps", "limit"), [(6, 5), (7, 5), (100, 5), (1000, 10), (999, 3), (20_000, POINTS)])
def test_first_and_last_stay_and_each_point_is_the_mean_of_its_steps(steps, limit):
    points = filled(steps, limit).points()
    assert limit / 2 - 1 <= len(points) <= limit
    assert points[0] == [1, 1.0, 0.001] and points[-1][0] == steps and points[-1][2] == steps / 1000
    ends = [step for step, _, _ in points]
    assert ends == sorted(set(ends))
    for (before, end), (_, loss, _) in zip(pairwise(ends), points[1:], strict=True):
        assert loss == pytest.approx(sum(range(before + 1, end + 1)) / (end - before), rel=1e-5)
    widths = {end - before for before, end in pairwise(ends[:-1])}
    assert len(widths) == 1, "all but the last stand for as many steps"


def test_a_million_steps_stay_small():
    curve = filled(1_000_000, 100)
    assert len(curve) <= 100
    assert sum(sys.getsizeof(entry) for entry in curve._bins) < 20_000


def test_losses_that_are_not_finite_are_none_and_spoil_no_mean():
    curve = filled(9, 5, lambda step: math.nan if step in (1, 2, 3, 5) else 6.0)
    assert curve.points() == [[1, None, 0.001], [3, None, 0.003], *([n, 6.0, n / 1000] for n in (5, 7, 9))]
    assert plain(math.inf) is None and plain(0.123456789) == 0.123457


def test_a_curve_of_two_points_is_refused():
    with pytest.raises(ValueError, match="at least 3"):
        Curve(2)


def test_entries_are_halved_but_for_the_first_and_the_last():
    entries = list(range(10))
    halved(entries, 10)
    assert entries == list(range(10))
    for number in range(10, 400):
        entries.append(number)
        halved(entries, 10)
        assert entries[0] == 0 and entries[-1] == number and 5 <= len(entries) <= 10


def test_a_mean_profile_is_that_of_layers_scaled_to_one():
    assert mean_profile([(4.0, 2.0), (1.0, 0.0), (0.0, 0.0), (), (math.nan, 1.0)]) == [1.0, 0.25]
    assert mean_profile([(2.0, 1.0, 1.0), (1.0,)]) == [1.0, 0.25, 0.25], "a layer of smaller rank has zeros"
    assert mean_profile([]) == [] and len(mean_profile([[1.0] * 64])) == 32
