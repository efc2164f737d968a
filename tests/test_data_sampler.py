"""The order of the pictures."""

from __future__ import annotations

from collections import Counter

import pytest

from trilora_core.data import batch_indices
from trilora_core.errors import InputError


def test_every_epoch_shows_every_picture_once_even_when_batches_straddle() -> None:
    seen = [index for step in range(7 * 5) for index in batch_indices(7, 3, seed=1, step=step)]
    for epoch in range(15):
        assert sorted(seen[7 * epoch : 7 * epoch + 7]) == list(range(7))


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    orders = {tuple(batch_indices(20, 20, seed, step)) for seed in range(4) for step in range(4)}
    assert len(orders) == 16


def test_a_step_needs_no_history() -> None:
    whole = [batch_indices(9, 4, 5, step) for step in range(30)]
    assert [batch_indices(9, 4, 5, step) for step in reversed(range(30))] == whole[::-1]


def test_the_order_never_changes_between_versions() -> None:
    assert batch_indices(8, 8, seed=0, step=0) == [2, 4, 0, 3, 1, 6, 7, 5]


def test_a_batch_larger_than_the_data_set_repeats_pictures_evenly() -> None:
    assert Counter(batch_indices(3, 9, 0, 0)) == {0: 3, 1: 3, 2: 3}
    assert batch_indices(1, 2, 0, 4) == [0, 0]


def test_nonsense_is_refused() -> None:
    with pytest.raises(InputError, match=r"count 0, batch_size 1, step 0"):
        batch_indices(0, 1, 0, 0)
