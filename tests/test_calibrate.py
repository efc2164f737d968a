"""Calibration of the toy model: exact sums, shared inputs, the file, the start of an adapter, and what is refused."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from tests.toy import TOKENS, WIDTH, ToyDenoiser, toy_dataset
from trilora_core.adapter import TriLoRA
from trilora_core.branch import Target
from trilora_core.calibrate import calibrate, check_calibration, facts_of
from trilora_core.calibration import calibration_path, read_calibration, read_facts, write_calibration
from trilora_core.config import AdapterConfig, CalibrationConfig, LayerConfig, TrainConfig
from trilora_core.errors import InputError
from trilora_core.moments import Storage
from trilora_core.prompts import BROAD
from trilora_core.runplan import run_fingerprint
from trilora_core.train import Run, train

WHOLE = Storage(whole=1 << 20)
TINY = Storage(whole=8, kept=6, spare=4)
LOOKS = 6


def prior(count: int = 4) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(9)
    return [torch.randn(TOKENS, WIDTH, generator=generator) for _ in range(count)]


def facts(denoiser, dataset, storage=(WHOLE, WHOLE), looks=LOOKS, **changes):
    found = facts_of(denoiser, dataset, ["a", "b", "c", "d"], "encoder", looks=looks, storage=storage)
    return dataclasses.replace(found, **changes)


def calibrated(storage=(WHOLE, WHOLE), denoiser=None, dataset=None, **changes):
    denoiser, dataset = denoiser or ToyDenoiser(), dataset or toy_dataset(sizes=((4, 4), (4, 2)))
    return calibrate(denoiser, dataset, prior(), facts(denoiser, dataset, storage, **changes))


def parameters(adapter: TriLoRA) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in adapter.named_parameters()}


def test_sums_are_those_of_every_input_in_float64():
    """Beside hooks of the test's own, the convolution's input as the columns that its flattened weight multiplies."""
    denoiser, dataset = ToyDenoiser(), toy_dataset(sizes=((4, 4), (4, 2)))
    targets = denoiser.targets()
    seen = {stem: [] for stem in targets}
    for stem, target in targets.items():
        target.module.register_forward_pre_hook(lambda module, args, stem=stem: seen[stem].append(args[0].double()))
    found = calibrated(denoiser=denoiser, dataset=dataset)
    for stem, target in targets.items():
        learned, rest = found.moments(stem)
        calls = seen[stem]
        looks = [sum(len(x) for x in calls[: i + 1]) for i in range(len(calls))].index(LOOKS) + 1
        for moments, inputs in ((learned, calls[:looks]), (rest, calls[looks:])):
            columns = [F.unfold(x, 3, padding=1).transpose(1, 2) if target.kernel else x for x in inputs]
            x = torch.cat([part.flatten(0, -2) for part in columns])
            wanted = x.T @ x / len(x)
            assert moments.count == len(x), stem
            assert (moments.matrix.double() - wanted).abs().max() < 6e-4 * wanted.abs().max(), stem


def test_layers_with_the_same_input_share_it():
    found = calibrated()
    groups = {name: {stem for stem, other in found.inputs.items() if other == name} for name in found.learned}
    stem = "lora_unet_blocks_0_to"
    assert {f"{stem}_k", f"{stem}_v"} in groups.values()
    assert len(groups) == 6 and found.learned.keys() == found.prior.keys()


def test_prior_latents_are_noise_of_the_training_sets_kind():
    """Channel by channel: of its mean and its spread; conditioning in turn."""
    denoiser, dataset, seen = ToyDenoiser(), toy_dataset(), []
    shifted = [item.latents[0] for item in dataset.items]
    for key in shifted:
        dataset.store.put(key, dataset.store.get(key) * 3 + torch.tensor([5.0, 0.0, -2.0, 1.0]).view(4, 1, 1))
    predict = denoiser.predict
    denoiser.predict = lambda *given: (seen.append(given), predict(*given))[1]
    calibrate(denoiser, dataset, prior(), facts(denoiser, dataset, looks=64))
    latents = torch.cat([given[0] for given in seen])
    for part in (latents[:64], latents[64:]):
        torch.testing.assert_close(part.mean((0, 2, 3)), torch.tensor([5.0, 0.0, -2.0, 1.0]), atol=0.4, rtol=0)
        torch.testing.assert_close(part.std((0, 2, 3)), torch.full((4,), 3.0), atol=0.5, rtol=0)
    given = [cond for batch in seen for cond in batch[3]][64:]
    assert all(torch.equal(cond, prior()[number % 4]) for number, cond in enumerate(given))


@pytest.mark.parametrize("storage", [(WHOLE, WHOLE), (TINY, WHOLE), (TINY, TINY)], ids=["whole", "half", "sketched"])
def test_the_file_keeps_every_bit_and_so_does_the_start(storage, tmp_path):
    denoiser, found = ToyDenoiser(), calibrated(storage)
    path = calibration_path(tmp_path / "style.safetensors")
    write_calibration(path, found)
    assert path.name == "style.calibration.safetensors"
    back = read_calibration(path)
    assert back.facts == found.facts == read_facts(path) and back.inputs == found.inputs
    assert back.size == found.size and 0 <= path.stat().st_size - found.size < 10_000
    config = AdapterConfig(rank=3, init="contrast")
    one, other = (
        parameters(TriLoRA.create(denoiser.targets(), config, seed=0, data_hash="", calibration=it))
        for it in (found, back)
    )
    assert all(torch.equal(one[name], other[name]) for name in one)
    again = calibrated(storage)
    for name, moments in again.prior.items():
        parts = found.prior[name].tensors()
        assert all(torch.equal(part, parts[kind]) for kind, part in moments.tensors().items())


def test_rows_of_the_start():
    """At the length of random rows, the best first, Σ and up as by default; the companion's rows stay random."""
    denoiser, found = ToyDenoiser(), calibrated()
    plain, apart = (
        TriLoRA.create(
            denoiser.targets(),
            AdapterConfig(rank=3, init=init, companion_rank=2),
            seed=0,
            data_hash="",
            calibration=found,
        )
        for init in ("svd-mean", "contrast")
    )
    directions = found.directions(dict.fromkeys(denoiser.targets(), 3))
    for stem, branch in apart.branches.items():
        other = plain.branches[stem]
        wide = branch.down.shape[1]
        torch.testing.assert_close(branch.down[:3].norm(dim=1), torch.full((3,), wide**0.5 / 3))
        torch.testing.assert_close(branch.down[:3], directions[stem] * (wide**0.5 / 3))
        assert torch.equal(branch.down[3:], other.down[3:])
        assert torch.equal(branch.sigma, other.sigma) and not branch.up.any()
    assert torch.equal(
        apart.branches["lora_unet_blocks_0_to_k"].down[:3], apart.branches["lora_unet_blocks_0_to_v"].down[:3]
    )


def test_layers_without_moments_start_as_ever():
    """Those of text encoders."""
    found, config = calibrated(), AdapterConfig(rank=2, init="contrast")
    stem = "lora_te_text_model_encoder_layers_0_self_attn_q_proj"
    targets = {stem: Target(torch.nn.Linear(12, 12)), **ToyDenoiser().targets()}
    apart = TriLoRA.create(targets, config, seed=0, data_hash="", calibration=found)
    plain = TriLoRA.create(targets, AdapterConfig(rank=2), seed=0, data_hash="")
    assert torch.equal(apart.branches[stem].down, plain.branches[stem].down)
    check_calibration(found, ToyDenoiser(), toy_dataset(sizes=((4, 4), (4, 2))), targets)


def test_a_run_that_starts_from_it_learns_and_knows_what_it_started_from():
    denoiser, dataset = ToyDenoiser(), toy_dataset(sizes=((4, 4), (4, 2)))
    found = calibrated(denoiser=denoiser, dataset=dataset)
    config = TrainConfig(steps=30, batch_size=4, adapter=AdapterConfig(rank=3, init="contrast"))
    config = dataclasses.replace(config, optimizer=dataclasses.replace(config.optimizer, learning_rate=0.02))
    adapter = TriLoRA.create(denoiser.targets(), config.adapter, seed=0, data_hash="", calibration=found)
    run = Run(config, denoiser, dataset, adapter)
    run.calibration_key = found.facts.key
    assert run.fingerprint() == run_fingerprint(run.config, dataset.content_hash, "toy-0", "", found.facts.key)
    assert run.fingerprint() != run_fingerprint(config, dataset.content_hash, "toy-0")
    with adapter.attach(denoiser.targets()):
        losses = [step.loss for step in train(run)]
    assert sum(losses[-8:]) < sum(losses[:8])


def test_the_key_follows_everything_but_the_name():
    denoiser, dataset = ToyDenoiser(), toy_dataset()
    one = facts(denoiser, dataset)
    assert dataclasses.replace(one, base_name="other").key == one.key
    others = {
        facts(denoiser, toy_dataset(seed=1)).key,
        facts_of(denoiser, dataset, ["a"], "encoder", looks=LOOKS, storage=(WHOLE, WHOLE)).key,
        facts_of(denoiser, dataset, ["a", "b", "c", "d"], "other", looks=LOOKS, storage=(WHOLE, WHOLE)).key,
        facts(denoiser, dataset, (TINY, WHOLE)).key,
        dataclasses.replace(one, seed=1).key,
        dataclasses.replace(one, base_fingerprint="x").key,
    }
    assert len(others | {one.key}) == 7


def test_every_exit_leaves_no_hook_and_an_interrupt_passes():
    denoiser, dataset = ToyDenoiser(), toy_dataset()
    before = {name: value.clone() for name, value in denoiser.model.state_dict().items()}
    told = []

    def progress(done, total):
        told.append((done, total))
        if done > LOOKS:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        calibrate(denoiser, dataset, prior(), facts(denoiser, dataset), progress=progress)
    assert told == [(0, 12), (4, 12), (6, 12), (10, 12)]
    calibrated(denoiser=denoiser)
    assert not any(module._forward_pre_hooks for module in denoiser.model.modules())
    assert all(torch.equal(value, before[name]) for name, value in denoiser.model.state_dict().items())


def test_no_input_outlives_its_layer():
    """At no time more than the last input of each layer is alive, and that by the model's own hand."""
    import gc
    import weakref

    denoiser, dataset, alive = ToyDenoiser(), toy_dataset(), []
    for target in denoiser.targets().values():
        target.module.register_forward_pre_hook(lambda module, args: alive.append(weakref.ref(args[0])))
    calibrate(denoiser, dataset, prior(), facts(denoiser, dataset), progress=None)
    gc.collect()
    assert len(alive) > 20 and not any(ref() is not None for ref in alive)


def test_what_does_not_fit_is_refused():
    denoiser, dataset = ToyDenoiser(), toy_dataset(sizes=((4, 4), (4, 2)))
    found, targets = calibrated(denoiser=denoiser, dataset=dataset), denoiser.targets()
    check_calibration(found, denoiser, dataset, targets)
    other = ToyDenoiser()
    other.base_fingerprint = "toy-1"
    with pytest.raises(InputError, match="calibrate this model"):
        check_calibration(found, other, dataset, targets)
    large = dataclasses.replace(dataset, config=dataclasses.replace(dataset.config, resolution=64))
    with pytest.raises(InputError, match="made at resolution 32, the data set has 64"):
        check_calibration(found, denoiser, large, targets)
    part = LayerConfig(exclude=("*mix",))
    less = calibrate(denoiser, dataset, prior(), facts(denoiser, dataset), part)
    with pytest.raises(InputError, match="lacks 2 of the layers to train, such as lora_unet_blocks_0_mix"):
        check_calibration(less, denoiser, dataset, targets)
    wider = {**targets, "lora_unet_blocks_0_to_q": Target(torch.nn.Linear(WIDTH + 1, WIDTH))}
    with pytest.raises(InputError, match="has 16 inputs for lora_unet_blocks_0_to_q, this model's has 17"):
        check_calibration(found, denoiser, dataset, wider)
    config = AdapterConfig(rank=2, init="contrast")
    with pytest.raises(InputError, match="has 16 inputs for lora_unet_blocks_0_to_q, this model's has 17"):
        TriLoRA.create(wider, config, seed=0, data_hash="", calibration=found)
    with pytest.raises(InputError, match="needs a calibration"):
        TriLoRA.create(targets, config, seed=0, data_hash="")
    with pytest.raises(InputError, match="no prior prompt"):
        calibrate(denoiser, dataset, [], facts(denoiser, dataset))


def test_a_layer_that_is_not_finite_is_named():
    denoiser, dataset = ToyDenoiser(), toy_dataset()
    denoiser.model.blocks[0].to_q.bias.fill_(float("nan"))
    with pytest.raises(InputError, match="layer lora_unet_blocks_0_mix: its input is not finite"):
        calibrated(denoiser=denoiser, dataset=dataset)


def test_inputs_that_part_are_refused():
    """A patch that gives keys another input from some step on."""
    denoiser, dataset, calls = ToyDenoiser(), toy_dataset(), []

    def part(module, args):
        calls.append(1)
        return (args[0].clone(),) if len(calls) > 1 else None

    denoiser.model.blocks[0].to_k.register_forward_pre_hook(part)
    with pytest.raises(InputError, match=r"had one input at first and no longer do"):
        calibrated(denoiser=denoiser, dataset=dataset)


def test_files_that_are_none(tmp_path):
    path = tmp_path / "x.calibration.safetensors"
    with pytest.raises(InputError, match="cannot read the calibration"):
        read_calibration(path)
    path.write_bytes(b"nonsense")
    with pytest.raises(InputError, match="cannot read the calibration"):
        read_facts(path)
    save_file({"a": torch.zeros(1)}, path)
    with pytest.raises(InputError, match="is no calibration"):
        read_calibration(path)
    write_calibration(path, calibrated())
    tensors, told = load_file(path), json.loads(_metadata(path)["trilora.calibration"])
    save_file(tensors, path, {"trilora.calibration_version": "0", "trilora.calibration": json.dumps(told)})
    with pytest.raises(InputError, match="calibration version 0, wanted 1"):
        read_calibration(path)


@pytest.mark.parametrize("damage", ["tensor", "shape", "side", "facts", "json"])
def test_damaged_files(damage, tmp_path):
    path = tmp_path / "x.calibration.safetensors"
    write_calibration(path, calibrated())
    tensors, metadata = load_file(path), _metadata(path)
    told = json.loads(metadata["trilora.calibration"])
    name = next(iter(tensors))
    if damage == "tensor":
        del tensors[name]
    elif damage == "shape":
        tensors[name] = tensors[name][:-1].clone()
    elif damage == "side":
        told["sides"]["prior"].popitem()
    elif damage == "facts":
        told["facts"]["resolution"] = "large"
    text = "{" if damage == "json" else json.dumps(told)
    save_file(tensors, path, {**metadata, "trilora.calibration": text})
    with pytest.raises(InputError, match="damaged"):
        read_calibration(path)


def _metadata(path):
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        return file.metadata()


def test_options():
    with pytest.raises(InputError, match="choose one"):
        CalibrationConfig(make=True, file="x")
    with pytest.raises(InputError, match="does nothing without"):
        CalibrationConfig(prompts=("a",))


def test_the_built_in_prompts_are_broad():
    assert len(BROAD) >= 100 and len(set(BROAD)) == len(BROAD)
    words = {word for caption in BROAD for word in caption.lower().split()}
    assert len(words) > 250 and {"woman", "dog", "street", "car", "watercolour", "rain", "abstract"} <= words
