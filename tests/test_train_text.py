"""Training the text encoder beside the denoiser, on the toy: gradients, rates, resume, what is watched, refusals."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch

from tests.counting import CountingEncoder, config, fill
from tests.test_memory import peak_of
from tests.test_train import CONFIG, same, values
from tests.toy import ToyDenoiser, ToyTextEncoder, toy_dataset, with_texts
from trilora_core.adapter import TriLoRA
from trilora_core.checkpoint import load_state, save_state
from trilora_core.config import LayerConfig, OptimizerConfig, TrainConfig
from trilora_core.config_data import CaptionConfig
from trilora_core.data import Dataset, load_folder
from trilora_core.errors import InputError
from trilora_core.fileformat import read_metadata
from trilora_core.keys import is_text
from trilora_core.memory import estimate
from trilora_core.monitor import Monitor
from trilora_core.objective import mse_per_sample
from trilora_core.optim import check_optimizer
from trilora_core.protocols import TextEncoder
from trilora_core.recompute import checkpointed
from trilora_core.runplan import targets_of
from trilora_core.session import train_to_file
from trilora_core.train import Run, train


def with_rate(rate: float, base: TrainConfig = CONFIG, **options: object) -> TrainConfig:
    return replace(base, optimizer=replace(base.optimizer, text_encoder_rate=rate, **options))


TEXT = with_rate(0.5)


def text_data(count: int = 6, **options: object) -> Dataset:
    return with_texts(toy_dataset(count, **options), ToyTextEncoder())


def make_run(options: TrainConfig = TEXT, data: Dataset | None = None, trained: bool = False) -> Run:
    """A run over toy denoiser and toy text encoder; `trained` fills all factors as if it had learned something."""
    denoiser, data = ToyDenoiser(), data or text_data()
    text = ToyTextEncoder() if options.optimizer.text_encoder_rate else None
    targets = targets_of(options, denoiser, text)
    adapter = TriLoRA.create(targets, options.adapter, seed=options.seed, data_hash=data.content_hash)
    run = Run(options, denoiser, data, adapter, text=text)
    if trained:
        fill_factors(adapter)
    return run


@torch.no_grad()
def fill_factors(adapter: TriLoRA) -> None:
    for index, parameter in enumerate(adapter.trainable()):
        parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(index)) / 4)


def go(run: Run, count: int | None = None) -> Run:
    with run.trainable.attach(run.targets()):
        for _, _ in zip(range(count or run.config.steps), train(run), strict=False):
            pass
    return run


def of_text(run: Run, text: bool = True) -> list[torch.Tensor]:
    return [value.detach().clone() for name, value in run.trainable.named_parameters() if is_text(name) == text]


def gradients(run: Run, *, recomputed: bool = False) -> dict[str, torch.Tensor]:
    with run.trainable.attach(run.targets()):
        if recomputed:
            with checkpointed(run.blocks(), in_place_safe=True):
                run._backward(0)
        else:
            run._backward(0)
    return {name: value.grad.clone() for name, value in run.trainable.named_parameters()}


def test_the_toy_keeps_the_protocol():
    assert isinstance(ToyTextEncoder(), TextEncoder)


def dense_reference(run: Run) -> dict[str, torch.Tensor]:
    """Gradients of the factors by autograd through weights W0 + ΔW that are written out, without hooks."""
    for stem, target in run.targets().items():
        branch, weight = run.trainable.branches[stem], target.module.weight.detach()
        change = branch.up @ branch.gained_down()
        if target.rows:
            first, last = target.rows
            above, below = (
                weight.new_zeros(first, change.shape[1]),
                weight.new_zeros(len(weight) - last, change.shape[1]),
            )
            change = torch.cat([above, change, below])
        del target.module.weight
        target.module.weight = weight + change.view_as(weight)
    rows = run._lines[0].batch(0)
    clean, noise = (torch.stack(parts) for parts in ([r.sample.latents for r in rows], [r.noise for r in rows]))
    cond = run.text.encode([row.sample.text for row in rows], [row.sample.cond for row in rows])
    prediction, target = run.denoiser.predict(clean, noise, run.denoiser.times(torch.cat([r.u for r in rows])), cond)
    loss = mse_per_sample(prediction, target, None).mean()
    names, parameters = zip(*run.trainable.named_parameters(), strict=True)
    return dict(zip(names, torch.autograd.grad(loss, parameters), strict=True))


def test_gradients_are_those_of_the_written_out_weights():
    options = replace(TEXT, adapter=replace(TEXT.adapter, layers=LayerConfig("attention+ff")))
    found, wanted = gradients(make_run(options, trained=True)), dense_reference(make_run(options, trained=True))
    assert sum(map(is_text, found)) == 2 * 6 * 3
    for name, gradient in found.items():
        assert float(gradient.norm()) > 0, name
        assert float((gradient - wanted[name]).norm() / wanted[name].norm()) < 1e-5, name


def test_recomputed_gradients_are_the_same_bits():
    plain, again = gradients(make_run(trained=True)), gradients(make_run(trained=True), recomputed=True)
    assert all(torch.equal(again[name], gradient) for name, gradient in plain.items())


def test_what_is_encoded_now_is_what_was_encoded_beforehand():
    """A start changes nothing, so the first loss with and without the text encoder is the same number."""
    live, cached = make_run(), make_run(with_rate(0.0))
    for row in live._lines[0].batch(0):
        assert torch.equal(live._cond([row])[0], row.sample.cond)
    assert go(live, 1).losses == go(cached, 1).losses


def test_training_lowers_the_loss_more_and_leaves_the_encoder_alone():
    live, cached = make_run(replace(with_rate(1.0), steps=80)), make_run(replace(with_rate(0.0), steps=80))
    before = {name: value.clone() for name, value in live.text.model.state_dict().items()}
    go(live), go(cached)
    assert sum(live.losses[-20:]) < sum(cached.losses[-20:]) < sum(live.losses[:20])
    assert all(torch.equal(value, before[name]) for name, value in live.text.model.state_dict().items())
    assert not any(module._forward_hooks for module in live.text.model.modules())


def test_the_rate_is_that_of_the_text_encoder_alone():
    """The first step of Adam goes as far as the rate says, so half the rate is half the way, to the bit."""
    whole, half = (go(make_run(with_rate(rate, weight_decay=0.0)), 1) for rate in (1.0, 0.5))
    assert all(torch.equal(a, b) for a, b in zip(of_text(whole, False), of_text(half, False), strict=True))
    ups = [[branch.up for stem, branch in run.trainable.branches.items() if is_text(stem)] for run in (whole, half)]
    assert all(a.abs().max() > 0 and torch.equal(a, 2 * b) for a, b in zip(*ups, strict=True))


def test_rate_0_trains_and_costs_nothing_of_the_text_encoder():
    """The same bits as for a data set that holds no texts, nothing encoded, no layer of a text encoder."""
    encoder = ToyTextEncoder()
    data = with_texts(toy_dataset(), encoder)
    with_words, without = make_run(with_rate(0.0), data), make_run(with_rate(0.0), replace(data, texts={}))
    go(with_words), go(without)
    assert same(values(with_words), values(without)) and with_words.losses == without.losses
    assert encoder.encoded == [] and not any(map(is_text, with_words.trainable.branches))


@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_a_resumed_run_is_the_uninterrupted_one(tmp_path, ema):
    options = replace(TEXT, steps=8, ema=ema, gradient_checkpointing=True)
    whole, first, rest = make_run(options), make_run(options), make_run(options)
    go(whole), go(first, 3)
    assert not same(of_text(whole), of_text(first))
    save_state(tmp_path / "state.safetensors", first, {})
    load_state(tmp_path / "state.safetensors", rest)
    go(rest)
    assert rest.step == 8 and whole.losses == rest.losses and same(values(whole), values(rest))


def test_an_interrupted_run_goes_on_to_the_same_file(tmp_path):
    options = replace(TEXT, steps=6, adapter=replace(TEXT.adapter, rank_dropout=0.25))

    def interrupt(step):
        if step.step == 4:
            raise KeyboardInterrupt

    whole = train_to_file(make_run(options), tmp_path / "whole.safetensors", metadata={}, on_step=lambda step: None)
    path = tmp_path / "stopped.safetensors"
    with pytest.raises(KeyboardInterrupt):
        train_to_file(make_run(options), path, metadata={}, on_step=interrupt)
    rest = train_to_file(make_run(options), path, metadata={}, on_step=lambda step: None, resume=True)
    hashes = [read_metadata(outcome.path)["sshs_model_hash"] for outcome in (whole, rest)]
    assert hashes[0] == hashes[1] and whole.losses == rest.losses


def test_the_fingerprint_follows_the_rate():
    prints = {make_run(with_rate(rate)).fingerprint() for rate in (0.0, 0.5, 1.0)}
    assert len(prints) == 3 and make_run().fingerprint() in prints


@pytest.mark.parametrize("name", ["adamw", "lion", "adafactor", "schedulefree"])
def test_every_method_moves_the_text_encoder(name):
    options = with_rate(0.5, replace(CONFIG, optimizer=OptimizerConfig(name=name, learning_rate=1e-2)))
    try:
        run = make_run(options)
    except InputError as error:
        pytest.skip(str(error))
    before = of_text(run)
    moved = [not torch.equal(a, b) for a, b in zip(before, of_text(go(run, 3)), strict=True)]
    assert all(moved)


def test_prodigy_takes_one_rate_for_all():
    check_text = OptimizerConfig(name="prodigy", learning_rate=1.0, text_encoder_rate=0.5)
    with pytest.raises(InputError, match=r"prodigy finds one rate for all parameters, but text_encoder_rate is 0\.5"):
        check_optimizer(check_text)
    pytest.importorskip("prodigyopt")
    check_optimizer(replace(check_text, text_encoder_rate=1.0))


def test_captions_without_their_text_are_refused():
    with pytest.raises(InputError, match="holds encoded captions without their text; make it from pictures"):
        make_run(data=toy_dataset())


def test_a_rate_without_an_encoder_and_the_reverse_are_refused():
    denoiser, data = ToyDenoiser(), text_data()
    adapter = TriLoRA.create(denoiser.targets(), CONFIG.adapter, seed=0, data_hash="")
    with pytest.raises(InputError, match=r"text_encoder_rate is 0\.5, but the run was given no text encoder"):
        Run(TEXT, denoiser, data, adapter)
    with pytest.raises(InputError, match="text_encoder_rate is 0, but the run was given a text encoder"):
        Run(with_rate(0.0), denoiser, data, adapter, text=ToyTextEncoder())


def test_patterns_that_leave_no_text_layer_are_refused():
    layers = LayerConfig(include=("lora_unet_*",))
    with pytest.raises(InputError, match="the layer patterns leave no layer of the text encoders: include lora_unet_"):
        make_run(replace(TEXT, adapter=replace(TEXT.adapter, layers=layers)))


def test_every_look_has_the_text_that_its_conditioning_encodes(tmp_path):
    """Captions in another order, captions that were dropped, several crops: text and conditioning stay together."""
    fill(tmp_path / "pictures", 4)
    for index, file in enumerate(sorted((tmp_path / "pictures").glob("*.txt"))):
        file.write_text(f"tag {index}, lamp, table, window, door")
    captions = CaptionConfig(prefix="zorb", shuffle=True, keep_tags=1, variants=6, dropout=0.3)
    data = load_folder(config(tmp_path / "pictures", captions=captions), CountingEncoder())
    for part in (data, data.part(1, 2)):
        seen = [part.sample(index % len(part), random.Random(index)) for index in range(200)]
        assert all(sample.text == sample.cond["text"] for sample in seen)
        assert "" in {sample.text for sample in seen} and len({sample.text for sample in seen}) > 8


def test_the_loop_encodes_the_captions_of_its_batch():
    run = make_run()
    batch = [row.sample.text for row in run._lines[0].batch(0)]
    go(run, 1)
    assert len(batch) == 3 and run.text.encoded == batch


def test_drift_and_validation_see_what_the_encoder_has_become():
    """Only text layers differ from the base here: drift is measured against the encoder as it was."""
    data = text_data(4)
    run = make_run(data=data)
    monitor = Monitor(run, data)
    with run.trainable.attach(run.targets()):
        start = monitor.measure()
        with torch.no_grad():
            for stem, branch in run.trainable.branches.items():
                if is_text(stem):
                    branch.up.normal_(std=0.5, generator=torch.Generator().manual_seed(1))
        now = monitor.measure()
    assert start.drift == 0 and now.drift > 1e-4 and now.validation != start.validation
    plain = make_run(with_rate(0.0), data)
    assert all(
        torch.equal(a, b) for a, b in zip(monitor._base.values(), Monitor(plain, data)._base.values(), strict=True)
    )


def test_a_start_with_text_layers_goes_on_or_is_carried():
    first = go(make_run(), 3)
    layers = first.adapter().layers
    again, carrying = make_run(), make_run(with_rate(0.0))
    again.trainable.start_from(layers)
    carrying.trainable.start_from(layers)
    assert again.trainable.carried == {} and all(map(is_text, carrying.trainable.carried))
    assert len(carrying.trainable.carried) == 8
    saved = again.trainable.canonical()
    for stem, layer in layers.items():
        wanted, found = ((svd.u * svd.s) @ svd.vh for svd in (layer.svd, saved[stem].svd))
        assert torch.allclose(found, wanted, atol=1e-6), stem
    go(carrying, 1)
    kept = carrying.adapter().layers
    assert all(kept[stem] is layers[stem] for stem in layers if is_text(stem))


def test_the_estimate_counts_the_text_encoder():
    """Its frozen weights, its factors with all that they need, and what its forward keeps for the backward pass."""
    data = text_data(4, sizes=((8, 8),))
    found, plain = estimate(make_run(data=data)), estimate(make_run(with_rate(0.0), data))
    encoder = sum(p.numel() * 4 for layer in ToyTextEncoder().model for p in layer.parameters())
    factors = sum(value.nbytes for value in of_text(make_run()))
    cached = sum(row.sample.cond.nbytes for row in make_run(data=data)._lines[0].batch(0))  # not read where it is live
    assert found.model - plain.model == encoder - cached
    assert found.parameters - plain.parameters == found.gradients - plain.gradients == factors
    assert found.optimizer > plain.optimizer and found.activations > plain.activations
    assert estimate(make_run(data=data), checkpointing=True).activations < found.activations


def test_the_estimate_is_the_peak_of_real_steps():
    data = text_data(8, sizes=((32, 32),))
    options = replace(TEXT, steps=4, batch_size=4)
    assert estimate(make_run(options, data)).ahead == pytest.approx(peak_of(make_run(options, data), 3), rel=0.1)
