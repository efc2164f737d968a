from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from trilora_core.recompute import checkpointed


class InPlaceBlock(nn.Module):
    """Changes its inputs in place, as Flux blocks do, after autograd has saved them."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.inner = nn.Linear(width, width)
        self.other = nn.Linear(width, width)
        self.calls = 0

    def forward(self, x: Tensor, *, text: Tensor | None = None, options: dict | None = None) -> tuple:
        self.calls += 1
        scale = 1.0 if options is None else options["scale"]
        x += scale * self.inner(self.norm(x))
        x += torch.tanh(self.other(self.norm(x)))
        if text is not None:
            text *= x.mean(dim=1, keepdim=True)
        return x, (text, None), x.argmax(dim=-1)


class Model(nn.Module):
    def __init__(self, width: int = 6, depth: int = 3) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.blocks = nn.ModuleList(InPlaceBlock(width) for _ in range(depth))
        self.requires_grad_(False)

    def forward(self, x: Tensor, text: Tensor | None) -> Tensor:
        options = {"scale": 1.0}
        for block in self.blocks:
            options["scale"] += 0.5
            x, (text, nothing), index = block(x, text=text, options=options)
            assert nothing is None and index.dtype == torch.int64
        return x.square().sum() + (0 if text is None else text.square().sum())


def hooked(model: Model, seed: int = 1) -> dict[str, Tensor]:
    """Trains a low-rank update inside every block through forward hooks, invisible to the block's parameters."""
    generator = torch.Generator().manual_seed(seed)
    factors: dict[str, Tensor] = {}
    for index, block in enumerate(model.blocks):
        up = torch.randn(6, 2, generator=generator).requires_grad_()
        down = torch.randn(2, 6, generator=generator).requires_grad_()
        block.inner.register_forward_hook(lambda m, args, y, up=up, down=down: y + args[0] @ down.T @ up.T)
        factors |= {f"{index}.up": up, f"{index}.down": down}
    return factors


def gradients(model: Model, factors: dict[str, Tensor], x: Tensor, text: Tensor | None) -> dict[str, Tensor]:
    for factor in factors.values():
        factor.grad = None
    x = x.clone().requires_grad_()
    loss = model(x * 1.0, None if text is None else text * 1.0)
    loss.backward()
    return {"x": x.grad, "loss": loss.detach(), **{name: factor.grad.clone() for name, factor in factors.items()}}


def assert_same(got: dict[str, Tensor], wanted: dict[str, Tensor], tolerance: float = 1e-6) -> None:
    for name, value in wanted.items():
        assert torch.allclose(got[name], value, rtol=tolerance, atol=tolerance * value.abs().max()), name


@pytest.mark.parametrize("with_text", [False, True])
def test_gradients_of_in_place_blocks_are_exact(with_text: bool) -> None:
    model = Model()
    factors = hooked(model)
    x, text = torch.randn(2, 4, 6), torch.randn(2, 4, 6) if with_text else None
    with torch.autograd.graph.allow_mutation_on_saved_tensors():
        wanted = gradients(model, factors, x, text)
    with checkpointed(model.blocks):
        assert_same(gradients(model, factors, x, text), wanted)


def test_in_place_blocks_fail_without_protection() -> None:
    """The reference above needs its context: otherwise the test would prove nothing."""
    model = Model()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        gradients(model, hooked(model), torch.randn(2, 4, 6), None)


def test_works_inside_a_context_that_allows_mutation() -> None:
    model = Model()
    factors = hooked(model)
    x = torch.randn(2, 4, 6)
    with torch.autograd.graph.allow_mutation_on_saved_tensors():
        wanted = gradients(model, factors, x, None)
        with checkpointed(model.blocks):
            assert_same(gradients(model, factors, x, None), wanted)


def test_parameters_get_gradients_when_no_input_needs_one() -> None:
    model = Model(depth=1)
    factors = hooked(model)
    with checkpointed(model.blocks):
        model(torch.randn(1, 2, 6), None).backward()
    assert all(factor.grad is not None and factor.grad.abs().sum() > 0 for factor in factors.values())


class PureBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, pair: list[Tensor], gain: float) -> Tensor:
        return torch.tanh(self.linear(pair[0])) * pair[1] * gain


@pytest.mark.parametrize("in_place_safe", [False, True])
def test_one_block_called_twice_with_nested_arguments(in_place_safe: bool) -> None:
    torch.manual_seed(0)
    block = PureBlock()

    def run(x: Tensor) -> list[Tensor]:
        block.zero_grad()
        x = x.clone().requires_grad_()
        out = block([block([x, x * 2], 0.5), x], gain=3.0)
        out.sum().backward()
        return [x.grad, block.linear.weight.grad.clone(), block.linear.bias.grad.clone()]

    x = torch.randn(3, 4)
    wanted = run(x)
    with checkpointed([block], in_place_safe=in_place_safe):
        for got, reference in zip(run(x), wanted, strict=True):
            assert torch.allclose(got, reference, rtol=1e-6, atol=1e-7)


def test_inside_is_freed_and_computed_again() -> None:
    model = Model()
    factors = hooked(model)
    with checkpointed(model.blocks):
        gradients(model, factors, torch.randn(2, 4, 6), None)
        assert [block.calls for block in model.blocks] == [2, 2, 2]
        with torch.no_grad():
            model(torch.randn(1, 2, 6), None)
        assert [block.calls for block in model.blocks] == [3, 3, 3]


def test_only_inputs_are_saved() -> None:
    block = nn.Sequential(nn.Linear(8, 800), nn.GELU(), nn.Linear(800, 8))
    saved: list[int] = []

    def pack(tensor: Tensor) -> Tensor:
        saved.append(tensor.numel())
        return tensor

    x = torch.randn(5, 8, requires_grad=True)
    with checkpointed([block], in_place_safe=True), torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        block(x)
    assert saved == [x.numel()]


def test_undone_after_an_error() -> None:
    model = Model()
    marker = model.blocks[1].forward
    model.blocks[1].forward = marker
    with pytest.raises(KeyboardInterrupt), checkpointed([*model.blocks, model.blocks[0]]):
        raise KeyboardInterrupt
    assert "forward" not in vars(model.blocks[0])
    assert vars(model.blocks[1])["forward"] is marker


def test_an_exception_in_the_second_run_reaches_the_caller() -> None:
    class Stop(BaseException):
        pass

    block = PureBlock()
    calls = []

    def hook(*_: object) -> None:
        calls.append(1)
        if len(calls) == 2:
            raise Stop

    block.linear.register_forward_hook(hook)
    with checkpointed([block]):
        out = block([torch.randn(1, 4), torch.ones(1, 4)], 1.0)
        with pytest.raises(Stop):
            out.sum().backward()


def test_autocast_of_the_forward_holds_in_the_second_run() -> None:
    block = PureBlock()
    seen: list[torch.dtype] = []
    block.linear.register_forward_hook(lambda m, args, y: seen.append(y.dtype))
    with checkpointed([block]):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            out = block([torch.randn(1, 4), torch.ones(1, 4)], 1.0)
        out.float().sum().backward()
    assert seen == [torch.bfloat16, torch.bfloat16]
    assert block.linear.weight.grad is not None and block.linear.weight.grad.dtype == torch.float32
