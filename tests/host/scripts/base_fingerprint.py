"""Fingerprints of one model with single weights changed, and what one costs."""

from __future__ import annotations

import time
from importlib import import_module
from typing import Any

import torch

from . import bridge_training_models as small

PARTS = {
    "attention": "middle_block.1.transformer_blocks.0.attn1.to_q.weight",
    "feed-forward": "middle_block.1.transformer_blocks.0.ff.net.0.proj.weight",
    "convolution": "middle_block.0.in_layers.2.weight",
    "norm": "middle_block.1.transformer_blocks.0.norm1.weight",
    "time": "time_embed.0.bias",
}


def main(pack: Any, arguments: dict[str, Any]) -> dict[str, Any]:
    """A fingerprint for each part, and the seconds that the cheapest of ten took."""
    fingerprint = import_module(".nodes.host.models", pack.__name__).fingerprint
    patcher = small.load("sd15", inference=False)
    answer = {"plain": fingerprint(patcher), "weights": len(list(patcher.model.named_parameters()))}
    for part, name in PARTS.items():
        weight = patcher.model.diffusion_model.get_parameter(name).data
        kept = weight.clone()
        weight.mul_(1.01)
        answer[part] = fingerprint(patcher)
        weight.copy_(kept)
    answer["again"] = fingerprint(patcher)
    answer["seconds"] = min(_timed(fingerprint, patcher) for _ in range(10))
    return answer


def _timed(call: Any, *inputs: Any) -> float:
    with torch.no_grad():
        started = time.process_time()
        call(*inputs)
        return time.process_time() - started
