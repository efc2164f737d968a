"""The same base with other spectra: what the start of Σ does where singular values of W0 are far from equal.

The demo's base was trained by an optimizer that keeps singular values alike, so that every start of Σ is nearly flat on
it. Attention does not change when the rows of q are scaled by g and those of k by 1/g, nor when v and the columns of
the output are: this gives each of the four a few large directions, and no prediction changes.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers.models.attention_processor import Attention
from torch import Tensor

LARGEST, DECAY = 4.0, 2 / 3  # of the largest direction, times what it was; falls with i^-DECAY until it is 1


def gains(width: int) -> Tensor:
    """One for each channel (width,): some above 1, as many their inverse, the others 1."""
    large = (LARGEST * torch.arange(1, width // 2 + 1).pow(-DECAY)).clamp_min(1.0)
    return torch.cat([large, torch.ones(width % 2), large.flip(0).reciprocal()])


@torch.no_grad()
def steepen(pipe: Any) -> None:
    """Scale the attention weights of a pipeline's U-Net in place."""
    for module in pipe.unet.modules():
        if isinstance(module, Attention):
            gain = gains(module.to_q.weight.shape[0])
            module.to_q.weight.mul_(gain.unsqueeze(1))
            module.to_k.weight.div_(gain.unsqueeze(1))
            module.to_v.weight.mul_(gain.unsqueeze(1))
            module.to_out[0].weight.div_(gain)
