"""Preserving the base without pictures: what is kept of it, and what that does to a run."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.toy import TOKENS, WIDTH, ToyDenoiser, toy_dataset
from trilora_core.adapter import TriLoRA
from trilora_core.batches import Row
from trilora_core.config import AdapterConfig, LossConfig, OptimizerConfig, PreserveConfig, TrainConfig
from trilora_core.data import DiskStore, MemoryStore
from trilora_core.errors import InputError
from trilora_core.memory import estimate
from trilora_core.objective import mse_per_sample
from trilora_core.preserve import LEVELS, Amount, Kept, KeptLine, encode_prior, keep, prompts_hash
from trilora_core.prompts import BROAD
from trilora_core.recompute import checkpointed
from trilora_core.runplan import run_fingerprint
from trilora_core.train import Run, train

CPU = torch.device("cpu")
PROMPTS = ("a house", "a tree", "a cat", "a street", "a lamp", "rain", "a drawing")
AMOUNT = Amount(weight=3.0, share=1 / 3, points=4, paths=10)
CONFIG = TrainConfig(
    steps=12,
    batch_size=3,
    seed=5,
    adapter=AdapterConfig(rank=4),
    optimizer=OptimizerConfig(learning_rate=1e-2),
    preserve=PreserveConfig("strong", PROMPTS),
)


class ToyEncoder:
    """Captions to conditioning that depends on the text alone."""

    fingerprint = picture_fingerprint = caption_fingerprint = "toy encoder"

    def __init__(self) -> None:
        self.asked: list[str] = []

    def pictures(self, images: Tensor) -> Tensor:
        raise AssertionError("no pictures are needed")

    def captions(self, texts: Any, *, weights: bool = False) -> list[Tensor]:
        self.asked += texts
        return [torch.randn(TOKENS, WIDTH, generator=torch.Generator().manual_seed(sum(map(ord, t)))) for t in texts]

    def placed(self, cond: Any, frame: Any) -> Any:
        return cond


def kept_of(denoiser: ToyDenoiser, data: Any, amount: Amount = AMOUNT, store: Any = None, **how: Any) -> Kept:
    return keep(denoiser, encode_prior(PROMPTS, ToyEncoder(), store or MemoryStore()), data, amount, CPU, **how)


def make_run(config: TrainConfig = CONFIG, amount: Amount = AMOUNT, **options: Any) -> Run:
    denoiser = ToyDenoiser()
    data = toy_dataset(6, sizes=options.pop("sizes", ((4, 4),)), **options)
    kept = None if config.preserve.base == "off" else kept_of(denoiser, data, amount)
    adapter = TriLoRA.create(denoiser.targets(), config.adapter, seed=config.seed, data_hash=data.content_hash)
    return Run(config, denoiser, data, adapter, kept=kept)


def go(run: Run, count: int | None = None) -> list[float]:
    with run.trainable.attach(run.denoiser.targets()), closing(train(run)) as steps:
        return [step.loss for _, step in zip(range(count or run.config.steps), steps, strict=False)]


def values(run: Run) -> list[Tensor]:
    return [parameter.detach().clone() for _, parameter in run.trainable.named_parameters()]


def same(a: list[Tensor], b: list[Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


# --- what is kept ---------------------------------------------------------------


def test_a_point_is_the_base_s_own_prediction():
    denoiser, data = ToyDenoiser(), toy_dataset(6)
    kept = kept_of(denoiser, data)
    assert len(kept.points) == 40
    for index in (0, 7, 39):
        row = kept.row(index, 1.0)
        cond, times = [row.sample.cond], denoiser.times(row.u)
        found, _ = denoiser.predict(row.sample.latents[None], row.noise[None], times, cond)
        assert row.target is not None and torch.allclose(found[0], row.target, atol=2e-3, rtol=1e-3)
        assert row.sample.text == PROMPTS[index // 4 % len(PROMPTS)] and row.sample.mask is None


def test_what_the_store_holds_is_not_asked_again(tmp_path):
    denoiser, data = ToyDenoiser(), toy_dataset(6)
    with closing(DiskStore(tmp_path / "data.sqlite", 2**30)) as store:
        first = kept_of(denoiser, data, store=store)
        calls, encoder = denoiser.calls, ToyEncoder()
        again = keep(denoiser, encode_prior(PROMPTS, encoder, store), data, AMOUNT, CPU)
        assert denoiser.calls == calls and not encoder.asked and again.points == first.points
        assert torch.equal(again.row(3, 1.0).sample.latents, first.row(3, 1.0).sample.latents)


@pytest.mark.parametrize("what", ["base", "shape", "points", "precision", "captions"])
def test_whatever_it_depends_on_is_in_its_name(what):
    denoiser, data, store = ToyDenoiser(), toy_dataset(6), MemoryStore()
    first = kept_of(denoiser, data, store=store)
    other, amount, how, texts = ToyDenoiser(), AMOUNT, {}, PROMPTS
    if what == "base":
        other.base_fingerprint = "toy-1"
    elif what == "shape":
        data = toy_dataset(6, sizes=((2, 6),))
    elif what == "points":
        amount = replace(AMOUNT, points=3)
    elif what == "precision":
        how = {"precision": "bf16"}
    else:
        texts = tuple(f"{text} at night" for text in PROMPTS)
    again = keep(other, encode_prior(texts, ToyEncoder(), store), data, amount, CPU, **how)
    assert not {key for key, _ in first.points} & {key for key, _ in again.points}


def test_an_interrupt_keeps_what_was_done_and_the_rest_comes_out_alike():
    data, store = toy_dataset(6), MemoryStore()
    whole = kept_of(ToyDenoiser(), data)

    def stop(done: int, total: int) -> None:
        assert total == 40
        if done >= 20:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        kept_of(ToyDenoiser(), data, store=store, progress=stop)
    denoiser = ToyDenoiser()
    resumed = kept_of(denoiser, data, store=store)
    assert 0 < denoiser.calls < 12  # of 3 batches of 4 steps
    for index in range(40):
        assert torch.equal(whole.row(index, 1.0).target, resumed.row(index, 1.0).target)


def test_a_store_that_lost_a_point_says_so():
    data, store = toy_dataset(6), MemoryStore()
    kept = kept_of(ToyDenoiser(), data, store=store)
    del store._values[kept.points[0][0]]
    with pytest.raises(InputError, match="start this run again"):
        kept.row(0, 1.0)


def test_the_most_frequent_shape_is_taken():
    kept = kept_of(ToyDenoiser(), toy_dataset(7, sizes=((2, 6), (4, 4), (2, 6))))
    assert tuple(kept.row(0, 1.0).noise.shape) == (4, 2, 6) and kept.shape == (4, 2, 6)


def test_without_captions_the_broad_ones_are_meant():
    assert encode_prior((), ToyEncoder(), MemoryStore()).texts == BROAD


# --- the rows of a run ----------------------------------------------------------


@pytest.mark.parametrize(
    ("batch", "share", "counts"), [(3, 1 / 3, [1, 1, 1, 1]), (1, 1 / 3, [0, 0, 1, 0, 0, 1]), (4, 0.5, [2, 2])]
)
def test_the_share_holds_over_batches_and_weighs_as_much(batch, share, counts):
    data = toy_dataset(6)
    kept = kept_of(ToyDenoiser(), data, replace(AMOUNT, share=share))
    line = KeptLine(kept, 0, batch)
    rows = [line.batch(step) for step in range(len(counts))]
    assert [len(part) for part in rows] == counts
    assert [len(line.shapes(step)) for step in range(len(counts))] == counts
    assert sum(row.weight for part in rows for row in part) == pytest.approx(3.0 * len(counts))


def test_every_point_has_its_turn_before_any_comes_again():
    line = KeptLine(kept_of(ToyDenoiser(), toy_dataset(6)), 3, 3)
    first = [line._index(place) for place in range(40)]
    assert sorted(first) == list(range(40))
    assert [line._index(place) for place in range(40, 80)] != first
    assert [KeptLine(line._kept, 4, 3)._index(place) for place in range(40)] != first


def test_the_loss_is_that_of_the_pictures_and_of_what_was_kept():
    """At the start nothing has changed, so that the kept rows add nothing; later they add their change."""
    run, plain = make_run(), make_run(replace(CONFIG, preserve=PreserveConfig()))
    assert go(run, 1)[0] == pytest.approx(go(plain, 1)[0], abs=1e-4)
    run = make_run()
    with torch.no_grad():
        for index, parameter in enumerate(run.trainable.trainable()):
            parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(index)) / 4)
    with run.trainable.attach(run.denoiser.targets()):
        rows = [row for line in run._lines for row in line.batch(0)]
        wanted = 0.0
        for row in rows:
            found, target = run.predict([row])
            aim = target if row.target is None else row.target[None]
            wanted += row.weight * mse_per_sample(found, aim).item()
        assert run._loss(rows).item() == pytest.approx(wanted, rel=1e-5)


def test_min_snr_leaves_what_was_kept_alone():
    run = make_run(replace(CONFIG, loss=LossConfig(min_snr_gamma=0.5)))
    row: Row = run._lines[1].batch(0)[0]
    with torch.no_grad():
        for index, parameter in enumerate(run.trainable.trainable()):
            parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(index)) / 4)
    with run.trainable.attach(run.denoiser.targets()):
        assert row.target is not None
        wanted = row.weight * mse_per_sample(run.predict([row])[0], row.target[None]).item()
        assert run._loss([row]).item() == pytest.approx(wanted, rel=1e-5)


def drift(run: Run) -> float:
    """Change of the base's predictions on captions and noise that are in neither."""
    denoiser, generator = run.denoiser, torch.Generator().manual_seed(99)
    clean, noise = (torch.randn(32, 4, 4, 4, generator=generator) for _ in range(2))
    cond = list(torch.randn(32, TOKENS, WIDTH, generator=generator))
    times = denoiser.times(torch.rand(32, generator=generator))
    base, _ = denoiser.predict(clean, noise, times, cond)
    with run.trainable.attach(denoiser.targets()):
        now, _ = denoiser.predict(clean, noise, times, cond)
    return float((now - base).detach().square().mean())


def test_what_is_kept_lowers_the_drift():
    config = replace(CONFIG, steps=60)
    free, held = make_run(replace(config, preserve=PreserveConfig())), make_run(config, replace(AMOUNT, weight=10.0))
    before = {name: value.clone() for name, value in held.denoiser.model.state_dict().items()}
    go(free)
    go(held)
    assert drift(held) < 0.5 * drift(free)
    assert all(torch.equal(value, before[name]) for name, value in held.denoiser.model.state_dict().items())


# --- the loop -------------------------------------------------------------------


def test_same_seed_same_tensors_and_another_seed_others():
    first, again, other = make_run(), make_run(), make_run(replace(CONFIG, seed=6))
    for run in (first, again, other):
        go(run)
    assert same(values(first), values(again)) and not same(values(first), values(other))


@pytest.mark.parametrize(("stop", "batch"), [(1, 3), (5, 1), (11, 2)])
def test_a_resumed_run_equals_the_uninterrupted_one(stop, batch):
    config = replace(CONFIG, batch_size=batch, optimizer=replace(CONFIG.optimizer, accumulation=2))
    whole, first, resumed = (make_run(config, sizes=((4, 4), (2, 6))) for _ in range(3))
    go(whole)
    go(first, stop)
    tensors, state = first.state()
    resumed.load_state({name: tensor.clone() for name, tensor in tensors.items()}, state)
    go(resumed)
    assert resumed.step == 12 and same(values(whole), values(resumed)) and whole.losses == resumed.losses


def test_accumulated_batches_equal_one_large_batch():
    large = make_run(replace(CONFIG, batch_size=6))
    small = make_run(replace(CONFIG, optimizer=replace(CONFIG.optimizer, accumulation=2)))
    assert go(large, 3) == pytest.approx(go(small, 3), rel=1e-4)


def test_checkpointed_training_is_the_same_training():
    plain, recomputed = make_run(), make_run()
    go(plain, 5)
    with checkpointed(recomputed.denoiser.blocks()):
        go(recomputed, 5)
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(values(plain), values(recomputed), strict=True))


def test_the_estimate_of_memory_counts_the_rows_that_are_kept():
    plain, with_kept = make_run(replace(CONFIG, preserve=PreserveConfig())), make_run(replace(CONFIG))
    assert estimate(plain).rows == 3 and estimate(with_kept).rows == 4


def test_a_run_is_refused_without_what_its_options_ask_for():
    run = make_run()
    with pytest.raises(InputError, match="nothing of the base's"):
        Run(CONFIG, run.denoiser, run.dataset, run.trainable)
    kept = kept_of(run.denoiser, run.dataset)
    with pytest.raises(InputError, match="points of the base's paths"):
        Run(replace(CONFIG, preserve=PreserveConfig()), run.denoiser, run.dataset, run.trainable, kept=kept)


def test_the_fingerprint_follows_level_and_captions_but_not_those_that_are_not_used():
    def print_of(preserve: PreserveConfig) -> str:
        return run_fingerprint(replace(CONFIG, preserve=preserve), "data", "base")

    off = print_of(PreserveConfig())
    assert off == print_of(PreserveConfig(prompts=PROMPTS))
    found = [off, *(print_of(PreserveConfig(level)) for level in LEVELS), print_of(PreserveConfig("light", PROMPTS))]
    assert len(set(found)) == 4


def test_the_fingerprint_follows_what_a_level_stands_for(monkeypatch):
    before = prompts_hash(PreserveConfig("light"))
    monkeypatch.setitem(LEVELS, "light", Amount(0.123))
    assert prompts_hash(PreserveConfig("light")) != before


def test_an_unknown_level_and_an_empty_prompt_are_refused():
    with pytest.raises(InputError, match="off, light, strong"):
        PreserveConfig("medium")
    with pytest.raises(InputError, match="not empty"):
        PreserveConfig("light", (" ",))
