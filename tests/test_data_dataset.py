"""A data set of what is encoded already, and what is read from any data set."""

from __future__ import annotations

import random

import pytest
import torch

from trilora_core.config_data import DataConfig
from trilora_core.data import load_tensors
from trilora_core.errors import InputError


def entry(**options: object) -> list[object]:
    return [torch.ones(3, 4), {"pooled_output": torch.ones(4), **options}]


def made(*, latent: float = 0.0, cond: object = None, **options: object):
    return load_tensors([torch.full((4, 2, 3), latent)], [cond or entry()], **options)


def test_latents_and_conditioning_come_back():
    mask = torch.rand(1, 2, 3)
    data = made(latent=0.5, masks=[mask], captions=["a cat"])
    sample = data.sample(0, random.Random(0))
    assert torch.equal(sample.latents, torch.full((4, 2, 3), 0.5)) and torch.equal(sample.mask, mask)
    assert torch.equal(sample.cond[0], torch.ones(3, 4)) and data.captions == ("a cat",)


def test_tensors_of_inference_mode_can_be_trained_on():
    with torch.inference_mode():
        data = made(masks=[torch.ones(1, 2, 3)])
    weight = torch.ones(1, requires_grad=True)
    sample = data.sample(0, random.Random(0))
    (sample.latents * sample.mask * weight).sum().backward()
    assert weight.grad is not None


def test_the_content_hash_covers_everything_that_is_trained_on():
    hashes = {
        made().content_hash,
        made(latent=1.0).content_hash,
        made(cond=entry(guidance=3.5)).content_hash,
        made(cond=entry(guidance=4.0)).content_hash,
        made(cond=entry(other=torch.zeros(1))).content_hash,
        made(cond=entry(other=torch.zeros(1, 1))).content_hash,
        made(masks=[torch.ones(1, 2, 3)]).content_hash,
        made(captions=["a cat"]).content_hash,
        made(config=DataConfig(trigger_word="sks")).content_hash,
    }
    assert len(hashes) == 9
    assert made().content_hash == made().content_hash


def test_what_does_not_fit_is_refused():
    with pytest.raises(InputError, match="1 latents came with 2 conditionings; wanted one for each"):
        load_tensors([torch.zeros(4, 2, 2)], [entry(), entry()])
    with pytest.raises(InputError, match=r"picture 1 has latents of shape \(2, 2\); wanted finite numbers"):
        load_tensors([torch.zeros(2, 2)], [entry()])
    with pytest.raises(InputError, match="wanted finite numbers"):
        made(latent=float("nan"))


def test_an_entry_that_is_gone_from_the_cache_is_named():
    data = made()
    data.store._values.clear()
    with pytest.raises(InputError, match="a cached picture or caption is damaged, or was removed"):
        data.sample(0, random.Random(0))
