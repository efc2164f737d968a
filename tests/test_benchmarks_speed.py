"""The harness of benchmarks/speed: it runs from end to end, and what it compares is what its README says."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import nn

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"


@pytest.fixture(scope="module")
def speed() -> Iterator[dict[str, ModuleType]]:
    """The modules, with the search path and the table of modules put back afterwards: they have plain names."""
    before, path = set(sys.modules), list(sys.path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "path", path)
        patch.syspath_prepend(BENCHMARKS / "speed")
        yield {name: import_module(name) for name in ("run", "gpu", "measure", "models", "paper", "plan", "sides")}
    for name in set(sys.modules) - before:
        if Path(str(getattr(sys.modules[name], "__file__", ""))).is_relative_to(BENCHMARKS):
            del sys.modules[name]


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    """The command measures on one thread."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_the_command_prints_and_draws_and_measures_nothing_twice(
    speed: dict[str, ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = speed["plan"]
    plain, recomputed = plan.sweeps(True)["recomputed"]
    few = {name: [plain] for name in plan.sweeps(True)} | {"rank": [plain, recomputed]}
    monkeypatch.setattr(plan, "sweeps", lambda tiny: few)
    words = ["run.py", "paper", "steps", "start", "--tiny", "--rounds", "1", "--folder", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", words)
    speed["run"].main()
    lines = (tmp_path / "results.jsonl").read_text().splitlines()
    names = [json.loads(line)["name"] for line in lines]
    assert names == ["paper tiny 8", f"steps {plain.name}", f"steps {recomputed.name}", "start sdxl"]
    assert (tmp_path / "speed.png").stat().st_size > 10_000
    assert "TriLoRA / floor" in capsys.readouterr().out
    speed["run"].main()
    assert (tmp_path / "results.jsonl").read_text().splitlines() == lines
    elsewhere = [json.dumps({**json.loads(line), "machine": "another"}) for line in lines]
    (tmp_path / "results.jsonl").write_text("\n".join(elsewhere))
    assert speed["run"].Book(tmp_path / "results.jsonl").records == {}


def test_tiny_results_cannot_be_taken_for_real_ones(
    speed: dict[str, ModuleType], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["run.py", "paper", "--tiny"])
    with pytest.raises(SystemExit):
        speed["run"].main()


@pytest.mark.parametrize("recomputed", [False, True])
def test_all_sides_train_the_same_frozen_weights_and_leave_them(speed: dict[str, ModuleType], recomputed: bool) -> None:
    sides = speed["sides"]
    bench = sides.Bench(sides.Case("tiny", side=8, rank=4, recomputed=recomputed))
    before = {name: tensor.clone() for name, tensor in bench.unet.state_dict().items()}
    storages = {tensor.data_ptr() for tensor in bench.unet.parameters()}
    assert storages == {tensor.data_ptr() for tensor in bench.twin().parameters()}
    for side in sides.SIDES.values():
        with side(bench) as step:
            step()
            step()
    assert all(torch.equal(before[name], tensor) for name, tensor in bench.unet.state_dict().items())
    assert not any(module._forward_hooks for module in bench.unet.modules())
    assert not any(parameter.requires_grad for parameter in bench.unet.parameters())


def test_the_floor_goes_back_to_the_first_adapted_layer(speed: dict[str, ModuleType]) -> None:
    sides = speed["sides"]
    bench = sides.Bench(sides.Case("tiny", side=8))
    reached: dict[str, torch.Tensor] = {}
    model = bench.twin()
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and ".attn" in name:
            module.register_full_backward_hook(lambda _m, _i, grads, n=name: reached.__setitem__(n, grads[0]))
    bench.twin = lambda: model
    with sides.floor(bench) as step:
        step()
    wanted = [name for name, m in model.named_modules() if isinstance(m, nn.Linear) and ".attn" in name]
    assert sorted(reached) == sorted(wanted) and all(bool(grad.any()) for grad in reached.values())


def test_the_adapter_costs_what_its_products_do(speed: dict[str, ModuleType]) -> None:
    rank, side = 4, 8
    paper = speed["paper"]
    found = paper.count("tiny", side, 1, rank, torch.float32)
    products = 0

    def multiplied(module: nn.Linear, args: tuple[torch.Tensor, ...]) -> None:
        nonlocal products
        rows = args[0].numel() // module.in_features
        products += 2 * rows * rank * (module.in_features + module.out_features)

    model = speed["models"].unet("tiny", "meta")
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and ".attn" in name:
            module.register_forward_pre_hook(multiplied)
    model.requires_grad_(True)  # something to go back to
    paper._pass(model, [], side, 1, torch.float32)
    assert found["adapter forward"] - found["floor forward"] == products
    assert 2 * products < found["adapter step"] - found["floor step"] <= 3 * products
    assert found["adapter saved"] > found["floor saved"] > 0


def test_what_a_gpu_would_be_asked_runs_on_a_cpu(speed: dict[str, ModuleType]) -> None:
    gpu, sides = speed["gpu"], speed["sides"]
    for side in (*gpu.PARTS, "start"):
        found = gpu.one(sides.Case("tiny", side=8), side, 1, "cpu")
        assert found["device"] == "CPU" and found.get("s", found.get("all", 0.0)) > 0
