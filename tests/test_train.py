from __future__ import annotations

import math
from contextlib import closing
from dataclasses import replace

import pytest
import torch

from tests.toy import ToyDenoiser, toy_dataset
from trilora_core.adapter import TriLoRA
from trilora_core.batches import Line
from trilora_core.config import DRAWS, AdapterConfig, LossConfig, OptimizerConfig, TrainConfig
from trilora_core.data import Dataset
from trilora_core.errors import InputError
from trilora_core.protocols import Denoiser
from trilora_core.recompute import checkpointed
from trilora_core.runplan import planned, settled
from trilora_core.train import Run, TrainingDiverged, train

CONFIG = TrainConfig(
    steps=40,
    batch_size=3,
    seed=5,
    adapter=AdapterConfig(rank=4),
    optimizer=OptimizerConfig(learning_rate=1e-2, schedule="cosine", warmup_steps=3),
)


def make_run(
    config: TrainConfig = CONFIG,
    denoiser: ToyDenoiser | None = None,
    data: Dataset | None = None,
    prior: Dataset | None = None,
) -> Run:
    denoiser, data = denoiser or ToyDenoiser(), data or toy_dataset()
    adapter = TriLoRA.create(denoiser.targets(), config.adapter, seed=config.seed, data_hash=data.content_hash)
    return Run(config, denoiser, data, adapter, prior)


def go(run: Run, count: int | None = None) -> list:
    with run.trainable.attach(run.denoiser.targets()), closing(train(run)) as steps:
        return [step for _, step in zip(range(count or run.config.steps), steps, strict=False)]


def values(run: Run) -> list[torch.Tensor]:
    return [parameter.detach().clone() for _, parameter in run.trainable.named_parameters()]


def same(a: list[torch.Tensor], b: list[torch.Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_the_toy_keeps_the_protocol():
    assert isinstance(ToyDenoiser(), Denoiser)


@pytest.mark.parametrize("method", ["trilora", "lora"])
def test_training_lowers_the_loss_and_leaves_the_model_alone(method):
    config = replace(CONFIG, steps=150, adapter=replace(CONFIG.adapter, method=method, companion_rank=1))
    run = make_run(config)
    before = {name: value.clone() for name, value in run.denoiser.model.state_dict().items()}
    steps = go(run)
    early = sum(step.loss for step in steps[:20]) / 20
    late = sum(step.loss for step in steps[-20:]) / 20
    assert late < 0.85 * early
    assert all(torch.equal(value, before[name]) for name, value in run.denoiser.model.state_dict().items())
    assert not any(target.module._forward_hooks for target in run.denoiser.targets().values())


def test_auto_times_are_those_of_the_kind_of_model_and_one_run():
    """The toy is a flow model; what auto stands for there is the same run, and on other models it is another draw."""
    chosen = {kind: settled(CONFIG, kind).loss.timesteps for kind in ("epsilon", "v", "v_prediction", "flow")}
    assert chosen == {"epsilon": "uniform", "v": "uniform", "v_prediction": "uniform", "flow": "logit-normal"}
    by_name = {name: make_run(replace(CONFIG, loss=LossConfig(timesteps=name))) for name in DRAWS}
    assert by_name["auto"].config == by_name["logit-normal"].config
    assert by_name["auto"].fingerprint() == by_name["logit-normal"].fingerprint() != by_name["uniform"].fingerprint()
    for run in by_name.values():
        go(run, 3)
    assert same(values(by_name["auto"]), values(by_name["logit-normal"]))
    assert not same(values(by_name["auto"]), values(by_name["uniform"]))
    assert settled(by_name["shifted"].config, "epsilon") == by_name["shifted"].config, "what was chosen stays"


def test_same_seed_same_tensors_and_another_seed_others():
    first, again, other = make_run(), make_run(), make_run(replace(CONFIG, seed=6))
    for run in (first, again, other):
        go(run)
    assert same(values(first), values(again)) and first.losses == again.losses
    assert not same(values(first), values(other))


def gradients(run: Run) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Loss and gradients of the first step, after `up` has left zero."""
    with torch.no_grad():
        for index, parameter in enumerate(run.trainable.trainable()):
            parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(index)) / 4)
    with run.trainable.attach(run.denoiser.targets()):
        total = sum(run._backward(micro) for micro in range(run.config.optimizer.accumulation))
    return total, [parameter.grad.clone() for parameter in run.trainable.trainable()]


def agree(one: tuple, other: tuple) -> bool:
    grads = zip(one[1], other[1], strict=True)
    return torch.allclose(one[0], other[0]) and all(torch.allclose(a, b, atol=1e-6) for a, b in grads)


def batches(batch_size: int, accumulation: int) -> TrainConfig:
    optimizer = replace(CONFIG.optimizer, accumulation=accumulation)
    return replace(CONFIG, batch_size=batch_size, optimizer=optimizer)


def test_accumulated_batches_equal_one_large_batch():
    """Loss and gradient of two batches of 1 are those of the pair: noise and times belong to the look."""
    assert agree(gradients(make_run(batches(1, 2))), gradients(make_run(batches(2, 1))))
    assert not agree(gradients(make_run(batches(1, 2))), gradients(make_run(batches(3, 1))))


def test_unlike_shapes_in_one_batch_weigh_alike():
    """5 pictures of two shapes in one step equal the mean over each of them alone, in any order."""
    data = toy_dataset(5, sizes=((4, 4), (2, 6)))
    whole = make_run(batches(5, 1), data=data)
    shapes = {tuple(row.sample.latents.shape) for row in whole._lines[0].batch(0)}
    assert shapes == {(4, 4, 4), (4, 2, 6)}
    loss, grads = gradients(whole)
    alone = make_run(batches(5, 1), data=data)
    parts = []
    for row in alone._lines[0].batch(0):
        with alone.trainable.attach(alone.denoiser.targets()):
            for mine, theirs in zip(alone.trainable.trainable(), whole.trainable.trainable(), strict=True):
                mine.data.copy_(theirs.data)
            part = alone._loss([replace(row, weight=1 / 5)])
            part.backward()
        parts.append(part.detach())
    assert agree((loss, grads), (sum(parts), [parameter.grad for parameter in alone.trainable.trainable()]))


def test_the_loss_ignores_what_the_mask_covers():
    """An error outside the mask moves neither loss nor gradient; inside it does."""
    mask = torch.zeros(1, 4, 4)
    mask[:, :, :2] = 1
    seen = []
    for changed in (None, (0, 3), (0, 0)):
        run = make_run(batches(1, 1), data=toy_dataset(1, masks=[mask]))
        inner = run.denoiser.predict

        def predict(latents, noise, times, cond, changed=changed, inner=inner):
            prediction, target = inner(latents, noise, times, cond)
            if changed:
                target = target.clone()
                target[:, :, changed[0], changed[1]] += 100
            return prediction, target

        run.denoiser.predict = predict
        seen.append(gradients(run))
    assert agree(seen[0], seen[1]) and not agree(seen[0], seen[2])


def test_pictures_with_and_without_mask_share_a_batch():
    mask = torch.full((1, 4, 4), 0.5)
    plain = gradients(make_run(batches(2, 1), data=toy_dataset(2)))
    half = gradients(make_run(batches(2, 1), data=toy_dataset(2, masks=[mask, mask])))
    one = gradients(make_run(batches(2, 1), data=toy_dataset(2, masks=[None, mask])))
    assert torch.allclose(half[0], plain[0] / 2) and half[0] < one[0] < plain[0]


def test_prior_pictures_add_their_weighted_mean_loss():
    data, prior = toy_dataset(4), toy_dataset(3, seed=9)
    config = replace(batches(2, 1), prior_batch_size=2, prior_weight=0.5)
    alone = gradients(make_run(config, data=data))
    other = gradients(make_run(config, data=data, prior=prior))
    run = make_run(config, data=data, prior=prior)
    run._lines = run._lines[1:]
    half = gradients(run)
    summed = (alone[0] + half[0], [a + b for a, b in zip(alone[1], half[1], strict=True)])
    assert agree(other, summed) and not agree(other, alone)
    nothing = gradients(make_run(replace(config, prior_weight=0.0), data=data, prior=prior))
    assert agree(nothing, alone)


def knows(data: Dataset, steps: int = 300) -> ToyDenoiser:
    """A base model that has learned a class of pictures."""
    base = ToyDenoiser()
    line = Line(data, seed=3, batch_size=8, weight=1.0, domain="base")
    base.model.requires_grad_(True)
    optimizer = torch.optim.Adam(base.model.parameters(), 3e-3)
    for step in range(steps):
        rows = line.batch(step)
        clean, noise = (torch.stack(parts) for parts in zip(*((r.sample.latents, r.noise) for r in rows), strict=True))
        times, cond = base.times(torch.cat([row.u for row in rows])), [row.sample.cond for row in rows]
        prediction, target = base.predict(clean, noise, times, cond)
        optimizer.zero_grad()
        (prediction - target).square().mean().backward()
        optimizer.step()
    base.model.requires_grad_(False)
    return base


def drift(run: Run, data: Dataset) -> float:
    """How far the predictions on a data set have moved from those of the base model."""
    rows = Line(data, seed=4, batch_size=32, weight=1.0, domain="drift").batch(0)
    clean, noise = (torch.stack(parts) for parts in zip(*((r.sample.latents, r.noise) for r in rows), strict=True))
    times, cond = run.denoiser.times(torch.cat([row.u for row in rows])), [row.sample.cond for row in rows]
    before, _ = run.denoiser.predict(clean, noise, times, cond)
    with torch.no_grad(), run.trainable.attach(run.denoiser.targets()):
        after, _ = run.denoiser.predict(clean, noise, times, cond)
    return float((after - before).square().mean())


def test_prior_pictures_lower_the_drift_of_what_the_base_knows():
    subject, known = toy_dataset(4), toy_dataset(8, seed=9)
    base = knows(known)
    config = replace(CONFIG, steps=150, prior_batch_size=3)
    alone, kept = make_run(config, base, subject), make_run(config, base, subject, known)
    for run in (alone, kept):
        go(run)
    assert drift(kept, known) < 0.6 * drift(alone, known)
    assert drift(kept, subject) > 0, "and the subject is learned"


def test_what_a_run_sees_is_in_its_fingerprint():
    data, prior = toy_dataset(4), toy_dataset(3, seed=9)
    prints = {
        make_run(data=data).fingerprint(),
        make_run(data=data, prior=prior).fingerprint(),
        make_run(data=data, prior=toy_dataset(3, seed=8)).fingerprint(),
        make_run(replace(CONFIG, prior_weight=0.5), data=data, prior=prior).fingerprint(),
    }
    assert len(prints) == 4


def test_epochs_become_steps():
    data = toy_dataset(7)
    assert planned(batches(2, 1), data) == batches(2, 1)
    assert planned(replace(batches(2, 1), epochs=3), data).steps == 11  # 21 looks in pairs
    assert planned(replace(batches(2, 2), epochs=3), data).steps == 6
    few = replace(data, config=replace(data.config, max_train_samples=5))
    assert planned(replace(batches(1, 1), epochs=3), few).steps == 15


def test_a_stopped_run_that_loads_its_state_equals_the_uninterrupted_one():
    whole, first = make_run(), make_run()
    go(whole)
    go(first, 17)
    tensors, state = first.state()
    tensors = {name: tensor.clone() for name, tensor in tensors.items()}
    resumed = make_run()
    resumed.load_state(tensors, state)
    go(resumed)
    assert resumed.step == 40 and same(values(whole), values(resumed)) and whole.losses == resumed.losses


def test_request_stop_ends_after_the_step_at_hand():
    run = make_run()
    with run.trainable.attach(run.denoiser.targets()), closing(train(run)) as steps:
        for step in steps:
            if step.step == 4:
                run.request_stop()
    assert run.step == 4 and len(run.losses) == 4


def test_a_bad_step_is_dropped_named_and_does_not_move_the_adapter():
    denoiser = ToyDenoiser()
    denoiser.poison_steps = {3, 4}
    run = make_run(denoiser=denoiser)
    before = go(run, 2) and values(run)
    bad = go(run, 2)
    assert [step.dropped for step in bad] == ["the loss was nan"] * 2 and same(before, values(run))
    good = go(run, 1)
    assert not good[0].dropped and not same(before, values(run))
    assert math.isnan(run.losses[2]) and math.isfinite(run.losses[4])


def test_three_bad_steps_in_a_row_end_the_run_with_the_last_good_state():
    """Good is what a finite loss was computed with: the parameters that step 3 found, not what it made of them."""
    denoiser = ToyDenoiser()
    denoiser.poison_steps = {4, 5, 6}
    run = make_run(denoiser=denoiser)
    before = go(run, 2) and values(run)
    with pytest.raises(TrainingDiverged, match="step 6: the loss was nan, the 3rd step in a row"):
        go(run)
    assert same(before, values(run))


def test_a_step_that_breaks_the_parameters_is_undone():
    config = replace(CONFIG, optimizer=OptimizerConfig(learning_rate=1e30))
    run = make_run(config)
    before = values(run)
    with pytest.raises(TrainingDiverged, match="without a usable gradient"):
        go(run)
    assert all(value.isfinite().all() for value in values(run)) and run.step < 40
    assert run.step > 4 or same(before, values(run))


def test_clipping_limits_the_step_but_reports_the_whole_norm():
    config = replace(CONFIG, steps=1, optimizer=replace(CONFIG.optimizer, clip_norm=1e-9, warmup_steps=0))
    free, clipped = make_run(replace(config, optimizer=replace(config.optimizer, clip_norm=0.0))), make_run(config)
    assert go(free)[0].grad_norm == pytest.approx(go(clipped)[0].grad_norm)
    moved = [sum(b.up.abs().sum() for b in run.trainable.branches.values()).item() for run in (free, clipped)]
    assert moved[1] < 0.2 * moved[0]


def test_checkpointed_training_is_the_same_training():
    plain, recomputed = make_run(), make_run()
    go(plain, 5)
    with checkpointed(recomputed.denoiser.blocks()):
        go(recomputed, 5)
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(values(plain), values(recomputed), strict=True))


@pytest.mark.parametrize("precision", ["bf16", "fp16", "fp32"])
def test_precisions_train(precision):
    run = make_run(replace(CONFIG, precision=precision, steps=3))
    steps = go(run)
    assert all(math.isfinite(step.loss) and not step.dropped for step in steps)
    assert run.scaler.is_enabled() == (precision == "fp16")


@pytest.mark.parametrize(("own", "precision"), [("float16", "fp32"), ("float16", "bf16"), ("bfloat16", "fp16")])
def test_a_precision_that_the_model_cannot_be_given_is_refused(own, precision):
    denoiser = ToyDenoiser()
    denoiser.compute_dtype = getattr(torch, own)
    with pytest.raises(InputError, match=f"precision is {precision}, but the model computes in {own}"):
        make_run(replace(CONFIG, precision=precision), denoiser)
    assert make_run(denoiser=denoiser).scaler.is_enabled() == (own == "float16")


def test_fingerprint_follows_what_the_result_depends_on():
    base = make_run().fingerprint()
    assert base == make_run(replace(CONFIG, save_every=7)).fingerprint()
    assert base == make_run(replace(CONFIG, gradient_checkpointing=True)).fingerprint(), "the same gradients"
    assert base != make_run(replace(CONFIG, steps=41)).fingerprint()
    assert base != make_run(replace(CONFIG, adapter=AdapterConfig(rank=5))).fingerprint()
    assert make_run().fingerprint(with_steps=False) == make_run(replace(CONFIG, steps=41)).fingerprint(with_steps=False)
