from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from tests.test_train import CONFIG, go, knows, make_run, same, values
from tests.toy import TOKENS, WIDTH, ToyDenoiser, toy_dataset
from trilora_core.config_data import CaptionConfig
from trilora_core.data import Dataset
from trilora_core.data.dataset import load_tensors
from trilora_core.errors import InputError
from trilora_core.monitor import Measure, Monitor, _looks, best_measure, split, waited


def names(data: Dataset) -> set[str]:
    return set(data.names)


def with_blank(data: Dataset) -> Dataset:
    """The data set with the empty caption encoded, as it is where captions are dropped."""
    data.store.put("blank", torch.randn(TOKENS, WIDTH, generator=torch.Generator().manual_seed(77)))
    return replace(data, blank="blank", config=replace(data.config, captions=CaptionConfig(dropout=0.1)))


def attached(run, work):
    with run.trainable.attach(run.denoiser.targets()):
        return work()


def test_every_picture_is_on_one_side():
    data = toy_dataset(20)
    training, held = split(data, 0.25, seed=1)
    assert len(held) == 5 and names(training) | names(held) == names(data) and not names(training) & names(held)
    again, other = split(data, 0.25, seed=1), split(data, 0.25, seed=2)
    assert names(again[1]) == names(held) != names(other[1])


def test_one_picture_more_moves_at_most_one_other():
    whole = toy_dataset(21)
    for share in (0.1, 0.3, 0.5):
        before = names(split(replace(whole, items=whole.items[:20]), share, seed=3)[1])
        after = names(split(whole, share, seed=3)[1])
        assert len(before - after) <= 1 and len(after - before) <= 1


def test_copies_of_a_picture_are_on_one_side():
    data = toy_dataset(6)
    copies = tuple(replace(item, name=f"copy of {item.name}") for item in data.items)
    for seed in range(5):
        held = names(split(replace(data, items=data.items + copies), 0.4, seed=seed)[1])
        assert len(held) == 4 and all(f"copy of {name}" in held for name in held if not name.startswith("copy"))


def test_both_sides_have_a_picture():
    for share in (0.01, 0.9):
        assert [len(part) for part in split(toy_dataset(2), share, seed=0)] == [1, 1]
    one = toy_dataset(1)
    with pytest.raises(InputError, match="3 pictures of 1 different contents cannot be divided"):
        split(replace(one, items=one.items * 3), 0.5, seed=0)


def test_the_hash_follows_the_part():
    data = toy_dataset(8)
    parts = [*split(data, 0.25, seed=0), *split(data, 0.5, seed=0), *split(toy_dataset(8, seed=1), 0.25, seed=0)]
    assert len({data.content_hash, *(part.content_hash for part in parts)}) == 7
    assert split(data, 0.25, seed=0)[0].content_hash == parts[0].content_hash


def test_looks_are_few_and_their_times_even():
    for count, expected in ((1, 4), (5, 20), (16, 64), (40, 40), (100, 64)):
        looks = _looks(toy_dataset(count), 0, dropout=0.0)
        times = sorted(look.u for look in looks)
        assert len(looks) == expected
        assert times == pytest.approx([(place + 0.5) / expected for place in range(expected)])


def test_measures_repeat_and_do_not_depend_on_the_batch_size():
    training, held = split(toy_dataset(8, sizes=((4, 4), (2, 6))), 0.4, seed=5)
    found = []
    for size in (1, 3, 3):
        run = make_run(replace(CONFIG, batch_size=size), data=training)
        found.append(attached(run, Monitor(run, held).measure))
    assert found[1] == found[2]
    assert found[0].validation == pytest.approx(found[1].validation, rel=1e-5)
    assert found[0].drift == 0 == found[0].step


def test_validation_is_the_mean_error_over_the_looks():
    training, held = split(toy_dataset(6), 0.2, seed=5)
    run = make_run(data=training)
    measure = attached(run, Monitor(run, held).measure)
    errors = []
    for look in _looks(held, CONFIG.seed, dropout=0.0):
        prediction, target = run.predict([look.row(CONFIG.seed)])
        errors.append((prediction - target).square().mean().item())
    assert len(errors) == 4 and measure.validation == pytest.approx(sum(errors) / 4, rel=1e-5)


def test_masks_count_in_validation():
    found = []
    for weight in (1.0, 0.5, 0.0):
        data = toy_dataset(4, masks=[torch.full((1, 4, 4), weight)] * 4)
        # the digest of tensors covers the mask, and noise follows the digest
        data = replace(data, items=tuple(replace(item, digest=item.name.encode()) for item in data.items))
        run = make_run()
        found.append(attached(run, Monitor(run, data).measure).validation)
    assert found[0] > 0 and found[1] == pytest.approx(found[0] / 2) and found[2] == 0


def test_a_run_learns_the_same_with_and_without_measures():
    training, held = split(with_blank(toy_dataset(8)), 0.3, seed=5)
    plain, watched = make_run(data=training), make_run(data=training)
    go(plain)
    torch.manual_seed(1)
    state = torch.random.get_rng_state()
    monitor = Monitor(watched, held)
    for _ in range(8):
        go(watched, 5)
        attached(watched, monitor.measure)
        assert all(parameter.grad is None for parameter in watched.trainable.trainable())
    assert torch.equal(state, torch.random.get_rng_state())
    assert same(values(plain), values(watched)) and plain.losses == watched.losses


def test_drift_is_asked_with_the_empty_caption_then_of_the_prior_then_of_the_pictures():
    """Each has its own looks; with the empty caption they are at the held-out pictures."""
    seen = []
    for blank, prior in ((True, True), (False, True), (False, False)):
        data = toy_dataset(6)
        training, held = split(with_blank(data) if blank else data, 0.3, seed=5)
        run = make_run(data=training, prior=toy_dataset(3, seed=9) if prior else None)
        monitor = Monitor(run, held)
        looks = [look for batch in monitor._drift_batches for look in batch]
        conds = [look.row(5).sample.cond for look in looks]
        asked = held.store.get("blank") if blank else None
        same_looks = monitor._drift_batches is monitor._batches
        seen.append((same_looks, all(asked is cond for cond in conds), looks[0].data.names == held.names))
    assert seen == [(False, True, True), (False, False, False), (True, False, True)]


def test_the_empty_caption_is_not_asked_for_where_none_is_dropped():
    """Whether it is in the store or not: another run may have put it there."""
    for data in (replace(toy_dataset(6), blank="never encoded"), with_blank(toy_dataset(6))):
        kept = replace(data, config=replace(data.config, captions=CaptionConfig()))
        training, held = split(kept, 0.3, seed=5)
        run = make_run(data=training)
        monitor = Monitor(run, held)
        assert monitor._drift_batches is monitor._batches
        assert attached(run, monitor.measure).drift == 0


def test_dropped_captions_do_not_reach_validation():
    data = with_blank(toy_dataset(6))
    data = replace(data, config=replace(data.config, captions=CaptionConfig(dropout=1.0)))
    for look in _looks(data, 5, dropout=0.0):
        assert look.row(5).sample.cond is not data.store.get("blank")


def test_drift_is_relative_to_the_base():
    """A model whose predictions are all ten times larger drifts the same for the same relative change."""
    training, held = split(toy_dataset(6), 0.3, seed=5)
    drifts = []
    for scale in (1.0, 10.0):
        run = make_run(data=training)
        inner = run.denoiser.predict
        run.denoiser.predict = lambda *args, inner=inner, scale=scale: (inner(*args)[0] * scale, inner(*args)[1])
        monitor = Monitor(run, held)
        with torch.no_grad():
            for index, parameter in enumerate(run.trainable.trainable()):
                parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(index)) / 10)
        drifts.append(attached(run, monitor.measure).drift)
    assert 0 < drifts[0] == pytest.approx(drifts[1], rel=1e-4)


def test_overfitting_shows_in_the_two_curves():
    """Two pictures by heart: training falls, validation rises again, drift grows."""
    generator = torch.Generator().manual_seed(3)
    latents = [torch.randn(4, 4, 4, generator=generator) * 0.3 for _ in range(8)]
    cond = [torch.randn(TOKENS, WIDTH, generator=generator) for _ in range(8)]
    data = load_tensors(latents, cond)
    training, held = replace(data, items=data.items[:2]), replace(data, items=data.items[2:])
    base: ToyDenoiser = knows(toy_dataset(8, seed=11), steps=100)
    run = make_run(replace(CONFIG, steps=240), base, training)
    monitor = Monitor(run, held)
    measures = [attached(run, monitor.measure)]
    while run.step < 240:
        go(run, 20)
        measures.append(attached(run, monitor.measure))
    best = best_measure(measures)
    assert best is not None and best.validation < measures[0].validation
    assert best.step < 240 and measures[-1].validation > best.validation
    assert measures[0].drift == 0 < measures[1].drift < measures[-1].drift


def test_best_and_waiting():
    def line(*losses: float) -> list[Measure]:
        return [Measure(10 * place, loss, 0.0) for place, loss in enumerate(losses)]

    assert best_measure([]) is None and waited([]) == 0
    assert best_measure(line(0.1)) is None and waited(line(0.1)) == 0  # the start is no result
    assert best_measure(line(0.1, 0.5, 0.4, 0.4, 0.6)) == Measure(20, 0.4, 0.0)
    assert [waited(line(0.1, 0.5, 0.4, 0.4, 0.6)[:count]) for count in range(1, 6)] == [0, 0, 0, 1, 2]
    assert waited(line(0.1, 0.5, math.nan, 0.4)) == 0 and waited(line(0.1, math.nan, math.nan)) == 2
