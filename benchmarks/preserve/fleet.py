"""Many runs at once through one forward pass: each has its own adapter, rows and optimizer, only the base is shared.

The demo's base is so small that a step of one run mostly waits for the calls; eight runs together take a third of the
time that they take one after another. tests/test_benchmarks_fleet.py holds it against the loop of the package.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from trilora_core.adapter import TriLoRA
from trilora_core.batches import Row
from trilora_core.branch import Branch, Target
from trilora_core.protocols import Denoiser

__all__ = ["Fleet", "Form", "three_factors"]

BETAS, EPSILON, CLIP = (0.9, 0.999), 1e-8, 1.0

# From x (K, n, in), output (K, n, out), up, sigma and down of a layer to the change of the output.
Form = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]


def three_factors(branches: Sequence[Branch]) -> Form:
    """ΔW as trilora_core.adapter has it, companion rows and scale included; `branches` are one layer's, run by run."""
    scales = torch.tensor([branch.scale for branch in branches]).unsqueeze(1)
    extra = torch.ones(len(branches), branches[0].down.shape[0] - branches[0].sigma.shape[0])

    def change(x: Tensor, output: Tensor, up: Tensor, sigma: Tensor, down: Tensor) -> Tensor:
        gain = torch.cat([sigma * scales, extra], dim=1)
        return x @ (down * gain.unsqueeze(2)).mT @ up.mT

    return change


class Fleet:
    """The adapters of K runs of one rank as one tensor (K, P), and AdamW with a rate and a decay for each of them."""

    def __init__(
        self,
        denoiser: Denoiser,
        targets: dict[str, Target],
        adapters: Sequence[TriLoRA],
        rates: Sequence[float],
        decays: Sequence[float],
        forms: Mapping[str, Form] | None = None,
    ) -> None:
        """`forms` says by layer what the three parameters of a branch mean; without it: `three_factors`."""
        self.denoiser, self.targets, self.count = denoiser, targets, len(adapters)
        self._shapes: list[tuple[int, ...]] = []
        self.stems = list(adapters[0].branches)
        rows, decay, held = [], [], []
        named = {stem: [adapter.branches[stem] for adapter in adapters] for stem in self.stems}
        self._forms = forms or {stem: three_factors(branches) for stem, branches in named.items()}
        for adapter, weight in zip(adapters, decays, strict=True):
            parts = [p for stem in self.stems for p in adapter.branches[stem].parameters().values()]
            rows.append(torch.cat([part.detach().flatten() for part in parts]))
            # Σ never decays; a fixed one does not move
            decay.append(torch.cat([torch.full((p.numel(),), weight if p.ndim > 1 else 0.0) for p in parts]))
            held.append(torch.cat([torch.full((p.numel(),), float(p.requires_grad)) for p in parts]))
            self._shapes = [tuple(part.shape) for part in parts]
        self.flat = torch.stack(rows).requires_grad_(True)
        self._decay, self._moves = torch.stack(decay), torch.stack(held)
        self._rates = torch.tensor(rates).view(-1, 1)
        self._mean, self._square, self._step = torch.zeros_like(self.flat), torch.zeros_like(self.flat), 0
        self._parts: list[Tensor] = []
        self.norms = torch.zeros(self.count)  # of the gradients of the last step, before clipping

    def layers(self) -> Iterator[tuple[str, Tensor, Tensor, Tensor]]:
        """Stem, up (K, out, r), sigma (K, r), down (K, r, in), as autograd sees them now."""
        for index, stem in enumerate(self.stems):
            yield (stem, *self._parts[3 * index : 3 * index + 3])

    @contextmanager
    def attached(self, strength: float = 1.0) -> Iterator[None]:
        """Rows of a batch belong to the runs in order, as many to each."""
        sizes = [torch.Size(shape).numel() for shape in self._shapes]
        pieces = self.flat.split(sizes, dim=1)
        self._parts = [p.view(self.count, *shape) for p, shape in zip(pieces, self._shapes, strict=True)]
        with ExitStack() as stack:
            for stem, up, sigma, down in self.layers():
                hook = self._hook(self._forms[stem], up, sigma, down, strength)
                stack.callback(self.targets[stem].module.register_forward_hook(hook).remove)
            yield

    def _hook(self, form: Form, up: Tensor, sigma: Tensor, down: Tensor, strength: float) -> Any:
        def hook(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
            x = args[0].reshape(self.count, -1, args[0].shape[-1])
            change = form(x, output.reshape(self.count, -1, output.shape[-1]), up, sigma, down)
            return output + strength * change.view(output.shape)

        return hook

    def asked(self, rows: Sequence[Sequence[Row]]) -> tuple[Tensor, Tensor]:
        """Prediction and target of every run's rows, (K, B, C, h, w), targets that rows bring along in their place."""
        flat = [row for part in rows for row in part]
        clean, noise = torch.stack([r.sample.latents for r in flat]), torch.stack([r.noise for r in flat])
        times = self.denoiser.times(torch.cat([row.u for row in flat]))
        prediction, target = self.denoiser.predict(clean, noise, times, [row.sample.cond for row in flat])
        for index, row in enumerate(flat):
            if row.target is not None:
                target[index] = row.target
        shape = (self.count, len(rows[0]))
        return prediction.unflatten(0, shape), target.unflatten(0, shape)

    def step(self, rows: Sequence[Sequence[Row]], penalty: Any = None) -> Tensor:
        """One optimizer step of every run on its own rows; the losses (K,)."""
        self.flat.grad = None
        with self.attached():
            prediction, target = self.asked(rows)
            weights = torch.tensor([[row.weight for row in part] for part in rows])
            losses = ((prediction - target).square().flatten(2).mean(dim=2) * weights).sum(dim=1)
            total = losses.sum() if penalty is None else losses.sum() + penalty(self)
            total.backward()
        self._update()
        return losses.detach()

    @torch.no_grad()
    def _update(self) -> None:
        assert self.flat.grad is not None
        gradient = self.flat.grad * self._moves
        norm = gradient.norm(dim=1, keepdim=True)
        self.norms = norm.squeeze(1)
        gradient *= (CLIP / (norm + 1e-6)).clamp(max=1.0)
        self._step += 1
        self._mean.lerp_(gradient, 1 - BETAS[0])
        self._square.mul_(BETAS[1]).addcmul_(gradient, gradient, value=1 - BETAS[1])
        self.flat *= 1 - self._rates * self._decay
        spread = (self._square / (1 - BETAS[1] ** self._step)).sqrt_().add_(EPSILON)
        self.flat -= self._rates * (self._mean / (1 - BETAS[0] ** self._step)) / spread
