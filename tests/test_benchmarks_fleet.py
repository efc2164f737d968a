"""Runs that share a forward pass (benchmarks/preserve/fleet.py) are the runs of the package's loop, and peft's."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from types import ModuleType

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

from trilora_core.adapter import TriLoRA
from trilora_core.batches import Line
from trilora_core.config import AdapterConfig, LayerConfig, LossConfig, OptimizerConfig, TrainConfig
from trilora_core.objective import orthogonality
from trilora_core.train import Run, train

from .toy import ToyDenoiser, toy_dataset

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
STEPS, BATCH, SEEDS = 6, 2, (3, 4)
LINEAR = LayerConfig(include=("*to_q", "*to_k"))


@pytest.fixture(scope="module")
def benchmark() -> Iterator[dict[str, ModuleType]]:
    """The modules, with the search path and the table of modules put back afterwards: both have plain names."""
    before = set(sys.modules)
    with pytest.MonkeyPatch.context() as patch:
        for folder in ("preserve", "world"):
            patch.syspath_prepend(BENCHMARKS / folder)
        import fleet
        import forms

        yield {"fleet": fleet, "forms": forms}
    for name in set(sys.modules) - before:
        if Path(str(getattr(sys.modules[name], "__file__", ""))).is_relative_to(BENCHMARKS):
            del sys.modules[name]


def _alone(denoiser: ToyDenoiser, config: TrainConfig, seed: int) -> dict[str, Tensor]:
    """What the package's own loop makes of one run."""
    data, targets = toy_dataset(), denoiser.targets(LINEAR)
    adapter = TriLoRA.create(targets, config.adapter, seed=seed, data_hash="x")
    run = Run(config, denoiser, data, adapter)
    with adapter.attach(targets), closing(train(run)) as steps:
        for _ in steps:
            pass
    return {name: parameter.detach() for name, parameter in adapter.named_parameters()}


@pytest.mark.parametrize(
    ("shape", "weight"),
    [
        (AdapterConfig(rank=4, layers=LINEAR), 0.0),
        (AdapterConfig(rank=4, layers=LINEAR, init="svd"), 0.5),  # with the penalty on U and V
        (AdapterConfig(rank=4, layers=LINEAR, method="lora", init="ones", alpha=8.0), 0.0),
        (AdapterConfig(rank=3, layers=LINEAR, companion_rank=1), 0.0),
    ],
)
def test_a_run_in_company_is_the_run_alone(
    benchmark: dict[str, ModuleType], shape: AdapterConfig, weight: float
) -> None:
    denoiser = ToyDenoiser()
    targets, data, rates = denoiser.targets(LINEAR), toy_dataset(), (1e-2, 3e-3)
    adapters = [TriLoRA.create(targets, shape, seed=seed, data_hash="x") for seed in SEEDS]
    fleet = benchmark["fleet"].Fleet(denoiser, targets, adapters, rates, [0.1, 0.1])
    lines = [Line(data, seed, BATCH, 1.0, "order") for seed in SEEDS]

    def penalty(fleet: object) -> Tensor:
        layers = list(fleet.layers())  # type: ignore[attr-defined]
        parts = [part[run] for _, up, _, down in layers for run in range(2) for part in (up.mT, down)]
        return weight * orthogonality(parts) / len(layers)

    for step in range(STEPS):
        fleet.step([line.batch(step) for line in lines], penalty if weight else None)
    for number, (seed, rate) in enumerate(zip(SEEDS, rates, strict=True)):
        config = TrainConfig(
            steps=STEPS,
            batch_size=BATCH,
            seed=seed,
            adapter=shape,
            optimizer=OptimizerConfig(learning_rate=rate, weight_decay=0.1),
            loss=LossConfig(timesteps="uniform", orthogonality=weight),
        )
        alone = _alone(denoiser, config, seed)
        with fleet.attached():
            for stem, *factors in fleet.layers():
                for name, found in zip(("up", "sigma", "down"), factors, strict=True):
                    torch.testing.assert_close(found[number], alone[f"{stem}.{name}"], rtol=1e-4, atol=1e-6)


class _Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.first, self.last = nn.Linear(7, 6, bias=False), nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.last(self.first(x).tanh())
        return out


@pytest.mark.parametrize("kind", ["dora", "pissa"])
def test_dora_and_pissa_are_those_of_peft(benchmark: dict[str, ModuleType], kind: str) -> None:
    """Output and gradients, layer by layer, where both have the same parameters, after a step away from the start."""
    rank, x, wanted = 3, torch.randn(4, 7), torch.randn(4, 5)
    config = LoraConfig(
        r=rank,
        lora_alpha=rank,
        target_modules=["first", "last"],
        use_dora=kind == "dora",
        init_lora_weights="pissa" if kind == "pissa" else True,
    )
    theirs, plain, forms = get_peft_model(_Net(), config), _Net().requires_grad_(False), benchmark["forms"]
    handles, ours = [], {}
    for name in ("first", "last"):
        layer, base = getattr(theirs.base_model.model, name), getattr(plain, name)
        down, up = layer.lora_A["default"].weight, layer.lora_B["default"].weight
        sigma = torch.ones(rank)
        if kind == "pissa":
            own_up, own_down = forms.principal(base.weight, rank)
            torch.testing.assert_close(own_up @ own_down, up @ down, rtol=1e-4, atol=1e-5)
            form = forms.pissa(*(part.detach().clone() for part in (up, down)))
        else:
            form, magnitude = forms.dora(base.weight, base.bias), layer.lora_magnitude_vector["default"].weight
            torch.testing.assert_close(magnitude, base.weight.norm(dim=1))
        with torch.no_grad():  # away from the start, alike
            up += 0.1 * torch.randn(up.shape)
            down += 0.1 * torch.randn(down.shape)
            if kind == "dora":
                magnitude *= 1 + 0.1 * torch.rand(magnitude.shape)
                sigma = magnitude.detach().clone()
        parts = [part.detach().clone().requires_grad_(True) for part in (up, sigma, down)]
        ours[name] = parts

        def hook(module: nn.Module, args: tuple[Tensor], output: Tensor, form=form, parts=parts) -> Tensor:  # type: ignore[no-untyped-def]
            return output + form(args[0][None], output[None], *(part[None] for part in parts))[0]

        handles.append(base.register_forward_hook(hook))
    left, right = theirs(x), plain(x)
    torch.testing.assert_close(right, left, rtol=1e-4, atol=1e-5)
    (left - wanted).square().sum().backward()
    (right - wanted).square().sum().backward()
    for name, (up, sigma, down) in ours.items():
        layer = getattr(theirs.base_model.model, name)
        torch.testing.assert_close(up.grad, layer.lora_B["default"].weight.grad, rtol=1e-3, atol=1e-5)
        torch.testing.assert_close(down.grad, layer.lora_A["default"].weight.grad, rtol=1e-3, atol=1e-5)
        if kind == "dora":
            torch.testing.assert_close(
                sigma.grad, layer.lora_magnitude_vector["default"].weight.grad, rtol=1e-3, atol=1e-5
            )
