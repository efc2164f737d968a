from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from trilora_core.adapter import Target, TriLoRA
from trilora_core.config import AdapterConfig, OptimizerConfig
from trilora_core.optim import make_optimizer, rate_at


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
