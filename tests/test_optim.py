from __future__ import annotations

import json
import math
import sys
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from tests.test_train import CONFIG, go, make_run, same, values
from tests.toy import ToyDenoiser, toy_dataset
from trilora_core.adapter import TriLoRA
from trilora_core.branch import Target
from trilora_core.checkpoint import load_state, save_state
from trilora_core.config import OPTIMIZERS, AdapterConfig, OptimizerConfig, TrainConfig
from trilora_core.errors import InputError
from trilora_core.optim import (
    check_optimizer,
    load_optimizer_state,
    make_optimizer,
    optimizer_state,
    rate_at,
    set_rate,
)
from trilora_core.train import Run


def test_schedules_start_and_end_where_they_should():
    def rates(**options):
        config = OptimizerConfig(learning_rate=1.0, **options)
        return [rate_at(config, step, 10) for step in range(10)]

    assert rates(schedule="constant") == [1.0] * 10
    assert rates(schedule="linear")[::3] == pytest.approx([1.0, 0.7, 0.4, 0.1])
    assert rates(schedule="cosine")[5] == pytest.approx(0.5)
    assert rates(schedule="cosine")[2] == pytest.approx(0.5 * (1 + math.cos(math.pi * 0.2)))
    assert rates(schedule="constant", warmup_steps=4)[:5] == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0])
    assert rates(schedule="linear", warmup_steps=5)[5:7] == pytest.approx([1.0, 0.8])


def test_sigma_has_no_weight_decay():
    adapter = TriLoRA.create({"a": Target(nn.Linear(8, 8))}, AdapterConfig(rank=2), seed=0, data_hash="")
    optimizer = make_optimizer(adapter, OptimizerConfig(weight_decay=0.5, learning_rate=0.1))
    sigma, down = adapter.branches["a"].sigma, adapter.branches["a"].down
    before = sigma.detach().clone(), down.detach().clone()
    for parameter in adapter.trainable():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    assert torch.equal(sigma, before[0])
    assert torch.allclose(down, before[1] * 0.95)


def tiny(rank: int = 2, inside: int = 8, **options) -> TriLoRA:
    torch.manual_seed(0)
    targets = {"a": Target(nn.Linear(inside, 8)), "b": Target(nn.Linear(8, 6))}
    return TriLoRA.create(targets, AdapterConfig(rank=rank, **options), seed=0, data_hash="")


def give_gradients(adapter: TriLoRA, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in adapter.trainable():
        parameter.grad = torch.randn(parameter.shape, generator=generator)


def test_each_factor_has_its_rate():
    adapter = tiny()
    config = OptimizerConfig(learning_rate=0.1, weight_decay=0.0, up_rate=1.0, sigma_rate=0.25, down_rate=3.0)
    optimizer = make_optimizer(adapter, config)
    assert set_rate(optimizer, 0.2) == 0.2
    before = {name: parameter.detach().clone() for name, parameter in adapter.named_parameters()}
    give_gradients(adapter, 1)
    optimizer.step()
    for name, parameter in adapter.named_parameters():
        rate = {"up": 0.2, "sigma": 0.05, "down": 0.6}[name.split(".")[1]]
        moved = (parameter - before[name]).abs()
        assert torch.allclose(moved, torch.full_like(moved, rate), rtol=1e-3), "the first step of Adam is the rate"


@pytest.mark.parametrize("factor", ["up", "sigma", "down"])
def test_a_factor_of_rate_0_is_held_and_costs_no_gradient(factor):
    optimizer = OptimizerConfig(learning_rate=1e-2, **{f"{factor}_rate": 0.0})
    config = replace(CONFIG, steps=3, optimizer=optimizer)
    denoiser = ToyDenoiser()
    adapter = TriLoRA.create(denoiser.targets(), config.adapter, seed=0, data_hash="")
    for branch in adapter.branches.values():
        nn.init.normal_(branch.up, std=0.1)
    run = Run(config, denoiser, toy_dataset(), adapter)
    before = {name: parameter.detach().clone() for name, parameter in adapter.named_parameters()}
    with adapter.attach(denoiser.targets()):
        run._backward(0)
    for name, parameter in adapter.named_parameters():
        assert (parameter.grad is None) == name.endswith(factor)
    go(run)
    for name, parameter in adapter.named_parameters():
        assert torch.equal(parameter, before[name]) == name.endswith(factor)


def test_nothing_to_train_is_refused():
    held = OptimizerConfig(up_rate=0.0)
    with pytest.raises(InputError, match="up_rate is 0 and up starts at zero"):
        make_optimizer(tiny(), held)
    with pytest.raises(InputError, match="leave nothing to train"):
        adapter = tiny(method="lora")
        for branch in adapter.branches.values():
            nn.init.ones_(branch.up)
        make_optimizer(adapter, replace(held, down_rate=0.0))


@pytest.mark.parametrize(
    ("options", "ema", "message"),
    [
        (
            {"name": "prodigy", "learning_rate": 1.0, "sigma_rate": 0.5},
            0.0,
            "prodigy finds one rate for all .* sigma_rate 0.5",
        ),
        (
            {"name": "prodigy", "learning_rate": 1e-4},
            0.0,
            "multiplies it by learning_rate, which is 0.0001, so next to nothing would be learned; set .* to 1",
        ),
        ({"name": "schedulefree", "schedule": "cosine"}, 0.0, "schedule is 'cosine'; set schedule to constant"),
        ({"name": "schedulefree", "beta1": 0.0}, 0.0, "needs beta1 above 0"),
        ({"name": "schedulefree"}, 0.9, "ema is 0.9; set ema to 0"),
    ],
)
def test_what_does_not_go_together_is_refused(options, ema, message):
    with pytest.raises(InputError, match=message):
        check_optimizer(OptimizerConfig(**options), ema)
    with pytest.raises(InputError, match=message):
        make_run(replace(CONFIG, ema=ema, optimizer=OptimizerConfig(**options)))


def test_prodigy_may_hold_a_factor():
    pytest.importorskip("prodigyopt")
    one = OptimizerConfig(name="prodigy", learning_rate=1.0)
    check_optimizer(replace(one, sigma_rate=0.0))
    check_optimizer(replace(one, up_rate=0.5, sigma_rate=0.5, down_rate=0.5))
    check_optimizer(replace(one, learning_rate=0.01))


@pytest.mark.parametrize(
    ("name", "module", "package"),
    [
        ("adamw8bit", "bitsandbytes", "bitsandbytes"),
        ("prodigy", "prodigyopt", "prodigyopt"),
        ("schedulefree", "schedulefree", "schedulefree"),
        ("lion", "lion_pytorch", "lion-pytorch"),
    ],
)
def test_an_absent_library_is_named_with_its_install_line(monkeypatch, name, module, package):
    for known in [known for known in sys.modules if known.partition(".")[0] == module]:
        monkeypatch.delitem(sys.modules, known)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(InputError, match=f"optimizer {name} needs the package {package}.*: pip install {package}$"):
        check_optimizer(OptimizerConfig(name=name, learning_rate=1.0))
    check_optimizer(OptimizerConfig())


def test_a_torch_without_adafactor_is_named(monkeypatch):
    monkeypatch.delattr(torch.optim, "Adafactor", raising=False)
    with pytest.raises(InputError, match=r"adafactor needs torch 2\.5 or newer, this is "):
        make_optimizer(tiny(), OptimizerConfig(name="adafactor"))


@pytest.mark.skipif(not hasattr(torch.optim, "Adafactor"), reason="torch before 2.5 has no Adafactor")
def test_adafactor_moves_by_our_rate_whatever_the_parameters_size():
    """Torch's own would move `up`, which is zero, by a thousandth of it, and a large Σ by more."""
    adapter = tiny()
    sigma = adapter.branches["a"].sigma
    with torch.no_grad():
        sigma.mul_(50.0)
    optimizer = make_optimizer(adapter, OptimizerConfig(name="adafactor", learning_rate=0.1, weight_decay=0.5))
    up, down = adapter.branches["a"].up, adapter.branches["a"].down
    before = [parameter.detach().clone() for parameter in (up, sigma, down)]
    for parameter in adapter.trainable():
        parameter.grad = torch.ones_like(parameter)
    for _ in range(200):  # past 1/rate², where torch's relative step would set in
        optimizer.step()
    assert torch.allclose(before[1] - sigma, torch.full_like(sigma, 200 * 0.1), rtol=1e-3)
    expected = 0.0
    for _ in range(200):
        expected = expected * (1 - 0.1 * 0.5) - 0.1
    assert torch.allclose(up, torch.full_like(up, expected), rtol=1e-3)


def test_prodigy_shows_the_rate_that_it_has_found():
    pytest.importorskip("prodigyopt")
    run = make_run(optimizer_config("prodigy", steps=60))
    rates = [step.learning_rate for step in go(run)]
    assert rates[0] == pytest.approx(1e-6) and rates[-1] > 10 * rates[0]


# What each optimizer needs to learn the toy in 150 steps.
SETTINGS = {
    "adamw": {"learning_rate": 1e-2, "schedule": "cosine"},
    "adamw8bit": {"learning_rate": 1e-2, "schedule": "cosine"},
    "adafactor": {"learning_rate": 1e-2, "schedule": "cosine"},
    "prodigy": {"learning_rate": 1.0, "warmup_steps": 0},  # it warms up by itself
    "schedulefree": {"learning_rate": 1e-2},
    "lion": {"learning_rate": 5e-3, "schedule": "cosine"},
}
LIBRARIES = {
    "adamw8bit": "bitsandbytes",
    "prodigy": "prodigyopt",
    "schedulefree": "schedulefree",
    "lion": "lion_pytorch",
}


@pytest.fixture(params=OPTIMIZERS)
def name(request) -> str:
    """Every optimizer by name; skipped, and said so, where its library is absent."""
    if request.param in LIBRARIES:
        pytest.importorskip(LIBRARIES[request.param])
    if request.param == "adafactor" and not hasattr(torch.optim, "Adafactor"):
        pytest.skip("torch before 2.5 has no Adafactor")
    return request.param


def optimizer_config(name: str, *, steps: int = 40, accumulation: int = 1, **options) -> TrainConfig:
    optimizer = OptimizerConfig(name=name, accumulation=accumulation, **{"warmup_steps": 3} | SETTINGS[name])
    return replace(CONFIG, steps=steps, optimizer=optimizer, **options)


def test_every_optimizer_trains_the_toy(name):
    run = make_run(optimizer_config(name, steps=150))
    losses = [step.loss for step in go(run)]
    early, late = sum(losses[:20]) / 20, sum(losses[-20:]) / 20
    assert late < 0.85 * early


def test_every_optimizer_repeats_itself(name):
    first, again = make_run(optimizer_config(name)), make_run(optimizer_config(name))
    go(first), go(again)
    assert same(values(first), values(again)) and first.losses == again.losses


@pytest.mark.parametrize("full", [False, True], ids=["plain", "accumulation and ema"])
def test_every_optimizer_resumes_bit_for_bit(name, full, tmp_path):
    ema = 0.95 if full and name != "schedulefree" else 0.0  # which averages by itself: with ema it is refused
    config = optimizer_config(name, steps=26, accumulation=2 if full else 1, ema=ema)
    whole, first, resumed = make_run(config), make_run(config), make_run(config)
    go(whole)
    go(first, 17)
    save_state(tmp_path / "a.state", first)
    load_state(tmp_path / "a.state", resumed)
    assert same(values(first), values(resumed))
    go(resumed)
    assert resumed.step == 26 and whole.losses == resumed.losses and same(values(whole), values(resumed))
    with whole.as_saved(), resumed.as_saved():
        assert same(values(whole), values(resumed))
    assert same_state(whole, resumed)


def same_state(one: Run, other: Run) -> bool:
    (tensors, numbers), (others, numbers_too) = one.state(), other.state()
    if tensors.keys() != others.keys() or numbers != numbers_too:
        return False
    return all(torch.equal(tensor, others[key]) for key, tensor in tensors.items())


def test_every_optimizer_trains_in_half_precision(name):
    """The gradient scaler calls the optimizer, and a step whose gradients overflow is dropped before it."""
    run = make_run(optimizer_config(name, steps=6, precision="fp16"))
    assert run.scaler.is_enabled()
    assert not any(step.dropped for step in go(run, 3))
    before = values(run)
    run.scaler.update(1e38)
    assert "norm was" in go(run, 1)[0].dropped and same(before, values(run))
    run.scaler.update(1024.0)
    assert not go(run, 1)[0].dropped and not same(before, values(run))


def test_moments_of_8_bits_resume(tmp_path):
    """The toy's factors are too small for them: `a.down` has 4096 numbers, and shares its tables with `c.down`."""
    pytest.importorskip("bitsandbytes")
    config = OptimizerConfig(name="adamw8bit", learning_rate=1e-2)

    def adapter() -> TriLoRA:
        torch.manual_seed(0)
        targets = {stem: Target(nn.Linear(1024, 8)) for stem in ("a", "c")}
        return TriLoRA.create(targets, AdapterConfig(rank=4), seed=0, data_hash="")

    def step(adapter: TriLoRA, optimizer: torch.optim.Optimizer, count: int) -> None:
        give_gradients(adapter, count)
        optimizer.step()

    one, two = adapter(), adapter()
    first, second = make_optimizer(one, config), make_optimizer(two, config)
    for count in range(3):
        step(one, first, count)
    tensors, numbers = optimizer_state(first)
    assert sum(tensor.dtype == torch.uint8 for tensor in tensors.values()) == 4
    save_file(tensors, tmp_path / "state")
    load_optimizer_state(second, load_file(tmp_path / "state"), json.loads(json.dumps(numbers)))
    with torch.no_grad():
        for mine, theirs in zip(two.trainable(), one.trainable(), strict=True):
            mine.copy_(theirs)
    step(one, first, 3), step(two, second, 3)
    assert same(one.trainable(), two.trainable())


def test_the_numbers_of_a_state_are_strict_json(name):
    run = make_run(optimizer_config(name))
    go(run, 2)
    json.dumps(run.state()[1], allow_nan=False)
