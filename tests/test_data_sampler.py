from __future__ import annotations

from collections import Counter

import pytest

from trilora_core.data.sampler import Order
from trilora_core.errors import InputError


def line(order: Order, steps: int) -> list[int]:
    return [draw.index for step in range(steps) for draw in order.batch(step)]


def one_shape(count: int, batch_size: int = 1, seed: int = 0, **options) -> Order:
    return Order([0] * count, [1] * count, batch_size=batch_size, seed=seed, **options)


def test_every_epoch_shows_each_picture_once():
    seen = line(one_shape(7), 21)
    epochs = [seen[start : start + 7] for start in (0, 7, 14)]
    assert all(sorted(epoch) == list(range(7)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]


def test_batches_straddle_epochs_without_loss():
    assert line(one_shape(5, 3), 10) == line(one_shape(5, 1), 30)


def test_a_batch_larger_than_the_set_repeats_pictures():
    assert Counter(line(one_shape(3, 6), 1)) == {0: 2, 1: 2, 2: 2}


def test_places_count_on_without_gap():
    order = one_shape(5, 3)
    assert [draw.place for step in range(4) for draw in order.batch(step)] == list(range(12))


def test_order_depends_on_seed_and_domain_only():
    assert line(one_shape(9, 2), 20) == line(one_shape(9, 2), 20)
    assert line(one_shape(9, 2, seed=1), 20) != line(one_shape(9, 2), 20)
    assert line(one_shape(9, 2, domain="prior"), 20) != line(one_shape(9, 2), 20)


def test_any_step_can_be_asked_first():
    fresh, used = one_shape(11, 4), one_shape(11, 4)
    line(used, 30)
    assert fresh.batch(25) == used.batch(25)


@pytest.mark.parametrize("sizes", [(10, 5, 1), (4, 4, 4), (1, 1, 1, 1, 1), (3, 20), (13,)])
@pytest.mark.parametrize("batch_size", [1, 3, 4, 30])
def test_shapes_stay_together_and_nothing_is_lost(sizes, batch_size):
    shapes = [shape for shape, count in enumerate(sizes) for _ in range(count)]
    order = Order(shapes, [1] * len(shapes), batch_size=batch_size, seed=3)
    seen = line(order, len(shapes))
    for epoch in range(batch_size):
        part = seen[epoch * len(shapes) : (epoch + 1) * len(shapes)]
        assert sorted(part) == list(range(len(shapes)))
    mixed = sum(len({shapes[draw.index] for draw in order.batch(step)}) > 1 for step in range(len(shapes)))
    # each epoch may leave fewer than a batch of every shape over, and begins inside a batch of the epoch before
    leftovers = sum(count % batch_size for count in sizes) + batch_size
    assert mixed <= (0 if len(sizes) == 1 else batch_size * -(-leftovers // batch_size) + batch_size)
    if batch_size == 1:
        assert mixed == 0


def test_most_batches_of_two_large_shapes_are_of_one():
    shapes = [0] * 50 + [1] * 50
    order = Order(shapes, [1] * 100, batch_size=4, seed=0)
    mixed = sum(len({shapes[draw.index] for draw in order.batch(step)}) > 1 for step in range(25))
    assert mixed <= 1  # two of each shape are left over: together one batch


def test_shapes_are_not_seen_one_after_the_other():
    shapes = [0] * 40 + [1] * 40
    order = Order(shapes, [1] * 80, batch_size=4, seed=0)
    kinds = [shapes[order.batch(step)[0].index] for step in range(20)]
    assert kinds != sorted(kinds) and kinds != sorted(kinds, reverse=True)


def test_repeats():
    order = Order([0, 0, 1], [3, 1, 2], batch_size=1, seed=0)
    assert order.epoch_size == 6
    assert Counter(line(order, 12)) == {0: 6, 1: 2, 2: 4}


def test_max_samples_draws_anew_each_epoch():
    order = one_shape(100, max_samples=10)
    assert order.epoch_size == 10
    epochs = [set(line(order, 30)[start : start + 10]) for start in (0, 10, 20)]
    assert all(len(epoch) == 10 for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    assert len(set(line(order, 200))) > 60


def test_max_samples_above_the_set_is_the_set():
    assert one_shape(3, max_samples=10).epoch_size == 3


@pytest.mark.parametrize(("count", "batch_size"), [(0, 1), (3, 0)])
def test_nothing_to_draw_is_named(count, batch_size):
    with pytest.raises(InputError, match="wanted at least 1 of both"):
        one_shape(count, batch_size)
