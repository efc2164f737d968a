"""On paper: what a step must compute and store, counted on shapes alone, at the full size of a model."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import models
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from trilora_core.adapter import whole_hook
from trilora_core.branch import Branch


class Saved:
    """Bytes that autograd keeps between forward and backward, each storage once, those of `parameters` left out."""

    def __init__(self, parameters: Iterable[Tensor]) -> None:
        self.bytes = 0
        self._known = {tensor.untyped_storage()._cdata for tensor in parameters}
        self._kept: list[Tensor] = []  # so that no storage's number is used again

    def pack(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in self._known:
            self._known.add(storage._cdata)
            self._kept.append(tensor.detach())
            self.bytes += storage.nbytes()
        return tensor


def count(name: str, side: int, batch: int, rank: int, dtype: torch.dtype = torch.bfloat16) -> dict[str, float]:
    """Operations and bytes of the frozen model with and without an adapter of this rank on its attention linears."""
    model = models.unet(name, "meta", dtype)
    targets = [module for key, module in model.named_modules() if isinstance(module, nn.Linear) and ".attn" in key]
    found: dict[str, float] = {"layers": len(targets)}
    for kind in ("floor", "adapter"):
        with _hooks(kind, targets, rank) as factors:
            forward, both, saved = _pass(model, factors, side, batch, dtype)
        found |= {f"{kind} forward": forward, f"{kind} step": both, f"{kind} saved": saved}
        if factors:
            count = sum(factor.numel() for factor in factors)
            found["adapter parameters"] = count
            found["adapter state"] = 4 * count * 5  # float32: itself, gradient, two moments, the last good one
    found["model"] = sum(tensor.nbytes for tensor in model.state_dict().values())
    return found


def _pass(
    model: Any, factors: list[nn.Parameter], side: int, batch: int, dtype: torch.dtype
) -> tuple[float, float, float]:
    place: dict[str, Any] = {"device": "meta", "dtype": dtype}
    tokens = torch.randn(batch, 77, model.config.cross_attention_dim, **place)
    added = None
    if model.config.addition_embed_type == "text_time":
        added = {"text_embeds": torch.randn(batch, 1280, **place), "time_ids": torch.randn(batch, 6, **place)}
    saved = Saved([*model.state_dict().values(), *factors])
    keeping = torch.autograd.graph.saved_tensors_hooks(saved.pack, lambda tensor: tensor)
    with _flash_attention(), FlopCounterMode(display=False) as flops, keeping:
        found = model(
            torch.randn(batch, 4, side, side, **place),
            torch.zeros(batch, device="meta", dtype=torch.long),
            encoder_hidden_states=tokens,
            added_cond_kwargs=added,
            return_dict=False,
        )[0]
        loss = F.mse_loss(found.float(), torch.randn(found.shape, device="meta"))
        forward = flops.get_total_flops()
        loss.backward()
    return forward, flops.get_total_flops(), saved.bytes


@contextmanager
def _flash_attention() -> Iterator[None]:
    """Attention as a GPU computes it, which keeps no probabilities (Dao et al. 2022); on shapes torch keeps them."""
    before = F.scaled_dot_product_attention

    def flash(query: Tensor, key: Tensor, value: Tensor, **_unused: Any) -> Tensor:
        return torch.ops.aten._scaled_dot_product_flash_attention(query, key, value)[0]

    F.scaled_dot_product_attention = flash  # type: ignore[assignment]
    try:
        yield
    finally:
        F.scaled_dot_product_attention = before


@contextmanager
def _hooks(kind: str, targets: list[Any], rank: int) -> Iterator[list[nn.Parameter]]:
    factors: list[nn.Parameter] = []
    handles = []
    for module in targets:
        if kind == "floor":
            handles.append(module.register_forward_hook(lambda _m, _a, output: _ask(output)))
            continue
        out, into = module.weight.shape
        up, down, sigma = (
            nn.Parameter(torch.zeros(shape, device="meta")) for shape in ((out, rank), (rank, into), (rank,))
        )
        factors += [up, down, sigma]
        handles.append(module.register_forward_hook(whole_hook(Branch(up, sigma, down, 1.0))))
    try:
        yield factors
    finally:
        for handle in handles:
            handle.remove()


def _ask(output: Tensor) -> None:
    if not output.requires_grad:
        output.requires_grad_(True)
