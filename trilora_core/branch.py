"""One layer of an adapter: the frozen layer that it changes, and the three factors of the change (TriLoRA, eq. 5)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .errors import InputError

__all__ = ["Branch", "Target"]

_CONV: dict[int, Callable[..., Tensor]] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


@dataclass(frozen=True)
class Target:
    """A frozen layer to adapt: a Linear, or some rows of one (fused q, k, v), or a Conv without groups.

    Σ starts from W0: `weight` is the unpatched one where `module.weight` is not it, and `read` gives what it stands for
    where its numbers say little by themselves (scaled or quantised), each time anew so that no copy is kept.
    """

    module: nn.Module
    rows: tuple[int, int] | None = None
    weight: Tensor | None = None
    read: Callable[[Tensor], Tensor] | None = None

    def base_weight(self) -> Tensor:
        """The frozen weight, flattened to (out, in) or (out, in·kernel), limited to the target's rows."""
        weight = self._held()
        weight = (weight if self.read is None else self.read(weight)).detach().flatten(1)
        return weight if self.rows is None else weight[self.rows[0] : self.rows[1]]

    @property
    def shape(self) -> tuple[int, int]:
        """That of `base_weight`, without reading it."""
        out, *rest = self._held().shape
        return out if self.rows is None else self.rows[1] - self.rows[0], math.prod(rest)

    def _held(self) -> Tensor:
        weight = self.module.weight if self.weight is None else self.weight
        if not isinstance(weight, Tensor):
            raise InputError(f"{type(self.module).__name__} has no weight tensor; adapt Linear and Conv layers")
        return weight

    @property
    def kernel(self) -> tuple[int, ...]:
        """() for a Linear, the kernel's size for a Conv."""
        return tuple(getattr(self.module, "kernel_size", ()))


@dataclass
class Branch:
    """Parameters of one layer: up (out, k), sigma (r,), down (k, in), with k = r + companion rank.

    The companion (paper, section 1) is a standard adapter beside the first: its rows have Σ fixed at 1, so that both
    run in one product.
    """

    up: nn.Parameter
    sigma: nn.Parameter
    down: nn.Parameter
    scale: float
    kernel: tuple[int, ...] = ()
    mask: Tensor | None = field(default=None, repr=False)  # (k,) inside TriLoRA.rank_dropout

    def gained_down(self, mask: Tensor | None = None) -> Tensor:
        """diag(scale · Σ · mask) · down, (k, in): folding Σ into the small factor costs r·in instead of tokens·r."""
        gain = self.sigma * self.scale
        extra = self.down.shape[0] - gain.shape[0]
        if extra:
            gain = torch.cat([gain, gain.new_ones(extra)])
        if mask is not None:
            gain = gain * mask
        return self.down * gain.unsqueeze(1)

    def delta(self, module: nn.Module, x: Tensor) -> Tensor:
        """The layer's change of output for its input x; (…, out) or (B, out, …) as the layer's own."""
        down, up = self.gained_down(self.mask).to(x.dtype), self.up.to(x.dtype)
        if not self.kernel:
            return F.linear(F.linear(x, down), up)
        conv: Any = module
        function = _CONV[len(self.kernel)]
        hidden = function(x, down.unflatten(1, (-1, *self.kernel)), None, conv.stride, conv.padding, conv.dilation)
        out: Tensor = function(hidden, up.reshape(*up.shape, *[1] * len(self.kernel)))
        return out

    def parameters(self) -> dict[str, nn.Parameter]:
        """The three factors by name."""
        return {"up": self.up, "sigma": self.sigma, "down": self.down}
