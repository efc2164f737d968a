"""Every control beside a dense float64 computation, their order, and what is refused."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from tests.adapters import dense, make_adapter, make_layer, relative_error
from trilora_core.errors import InputError
from trilora_core.fileformat import Adapter
from trilora_core.shaping import Shape, band, highest_rank, shape

DEEP, MID, TEXT, CONV = (
    "lora_unet_down_blocks_2_attentions_1_transformer_blocks_0_attn1_to_q",
    "lora_unet_mid_block_attentions_0_proj_in",
    "lora_te_text_model_encoder_layers_1_self_attn_q_proj",
    "lora_unet_up_blocks_3_resnets_0_conv1",
)
BLOCK = {DEEP: "IN08", MID: "MID", TEXT: "TE", CONV: "OUT09"}


def adapter() -> Adapter:
    """SD 1.5 by its names: ranks 6, 3, 6 and a convolution of rank 5, singular values far apart."""
    layers = {
        DEEP: make_layer(24, 16, 6, seed=1),
        MID: make_layer(12, 20, 3, seed=2),
        TEXT: make_layer(16, 16, 6, seed=3),
        CONV: make_layer(10, 4 * 9, 5, seed=4, kernel=(3, 3)),
    }
    return Adapter(layers, {"modelspec.architecture": "stable-diffusion-v1/lora"})


def wanted(weight: Tensor, how: Shape, strength: float, rank: int) -> Tensor:
    """The same on the dense ΔW, in float64, through its own SVD."""
    u, s, vh = torch.linalg.svd(weight, full_matrices=False)
    keep = how.keep_rank or rank
    energies = (s.square().cumsum(0) / s.square().sum()).tolist()
    if how.keep_energy < 1:
        keep = min(keep, 1 + next(i for i, held in enumerate(energies) if held >= how.keep_energy - 1e-12))
    bent = s.clone()
    bent[keep:] = 0
    bent[:rank] = torch.where(bent[:rank] > 0, s[0] * (bent[:rank] / s[0]) ** how.tone, 0.0)
    bent[rank:] = 0
    if how.normalize:
        bent = bent * s.norm() / bent.norm()
    return strength * (u * bent) @ vh


@pytest.mark.parametrize(
    ("rank", "share", "tone", "normalize"),
    list(itertools.product([0, 1, 4], [1.0, 0.7], [1.0, 0.4, 2.5, 0.0], [False, True])),
)
def test_every_control_beside_a_dense_computation(rank, share, tone, normalize):
    given = adapter()
    how = Shape(keep_rank=rank, keep_energy=share, tone=tone, normalize=normalize, blocks="IN:0.5, MID:-1, OUT09:2")
    strengths = {DEEP: 0.5, MID: -1.0, TEXT: 1.0, CONV: 2.0}
    shaped = shape(given, how)
    assert list(shaped.layers) == list(given.layers)
    for stem, layer in given.layers.items():
        expected = wanted(dense(layer), how, strengths[stem], layer.svd.s.numel())
        assert relative_error(dense(shaped.layers[stem]), expected) < 1e-6
        assert shaped.layers[stem].kernel == layer.kernel


def test_what_comes_out_is_canonical():
    shaped = shape(adapter(), Shape(keep_rank=4, tone=0.5, normalize=True, blocks="MID:-2"))
    for layer in shaped.layers.values():
        u, s, vh = layer.svd
        assert (s >= 0).all() and (s.diff() <= 0).all()
        assert (
            relative_error(u.mT @ u, torch.eye(len(s))) < 1e-5 and relative_error(vh @ vh.mT, torch.eye(len(s))) < 1e-5
        )


def test_the_default_changes_nothing_and_copies_nothing():
    given = adapter()
    shaped = shape(given, Shape())
    assert all(shaped.layers[stem] is layer for stem, layer in given.layers.items())
    same = shape(given, Shape(normalize=True, blocks="IN00:0"))  # no layer lies there
    assert all(same.layers[stem] is layer for stem, layer in given.layers.items())


def test_the_tone_holds_the_largest_value_and_normalize_the_energy():
    given = adapter()
    for tone in (0.0, 0.5, 3.0):
        bent = shape(given, Shape(tone=tone)).layers[DEEP].svd.s
        assert torch.equal(bent[0], given.layers[DEEP].svd.s[0])
        held = shape(given, Shape(tone=tone, keep_rank=2, normalize=True)).layers[DEEP].svd.s
        assert held.norm() == pytest.approx(float(given.layers[DEEP].svd.s.norm()), rel=1e-6)


def test_a_low_tone_does_not_raise_what_is_rounding():
    layer = make_layer(16, 16, 3)
    s = layer.svd.s * torch.tensor([1.0, 1.0, 1e-9])
    given = Adapter({MID: type(layer)(type(layer.svd)(layer.svd.u, s, layer.svd.vh))}, {})
    bent = shape(given, Shape(tone=0.0)).layers[MID].svd.s
    assert bent[1] == pytest.approx(float(s[0])) and bent[2] == s[2]


def test_a_layer_without_change_stays_so():
    layer = make_layer(16, 16, 3)
    zero = Adapter({MID: type(layer)(type(layer.svd)(layer.svd.u, layer.svd.s * 0, layer.svd.vh))}, {})
    shaped = shape(zero, Shape(keep_rank=2, keep_energy=0.5, tone=0.5, normalize=True))
    assert not dense(shaped.layers[MID]).any()


def test_blocks_of_strength_0_are_left_out():
    shaped = shape(adapter(), Shape(preset="OUTALL"))
    assert list(shaped.layers) == [TEXT, CONV]
    assert shape(adapter(), Shape(blocks="NONE")).layers == {}


def test_ranks_of_single_layers_may_be_lower():
    shaped = shape(adapter(), Shape(keep_rank=5))
    assert [layer.svd.s.numel() for layer in shaped.layers.values()] == [5, 3, 5, 5]


def test_bands_add_up_to_the_whole():
    given = adapter()
    parts = [band(given, 0, 1), band(given, 1, 4), band(given, 4, highest_rank(given))]
    assert MID not in parts[2].layers
    for stem, layer in given.layers.items():
        total = sum(dense(part.layers[stem]) for part in parts if stem in part.layers)
        assert relative_error(total, dense(layer)) < 1e-12


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"keep_rank": -1}, "keep_rank is -1; wanted a whole number from 0 up"),
        ({"keep_rank": 1.5}, "keep_rank is 1.5; wanted a whole number"),
        ({"keep_energy": 0.0}, "keep_energy is 0.0; wanted a finite number above 0 and at most 1"),
        ({"keep_energy": 1.01}, "keep_energy is 1.01; wanted"),
        ({"tone": -0.1}, "tone is -0.1; wanted a finite number from 0 to 10"),
        ({"tone": float("nan")}, "tone is nan"),
        ({"normalize": 1}, "normalize is 1; wanted true or false"),
        ({"preset": "SOME"}, "preset is 'SOME'; known: ALL, NONE, ALL0.5, INS"),
        ({"blocks": None}, "blocks is None; wanted a text"),
    ],
)
def test_bad_values(settings, said):
    with pytest.raises(InputError) as error:
        Shape(**settings)
    assert said in str(error.value)


def test_a_rank_above_the_highest_is_refused():
    with pytest.raises(
        InputError, match="keep_rank is 7, but the adapter's highest rank is 6; give 1 to 6, or 0 for all"
    ):
        shape(adapter(), Shape(keep_rank=7))


def test_a_typo_in_the_blocks_is_shown():
    with pytest.raises(InputError, match="character 3: found '14', expected one of IN00-11"):
        shape(adapter(), Shape(blocks="IN14:1"))


def test_an_adapter_that_does_not_tell_its_model():
    given = make_adapter(["odd.layer", "lora_unet_input_blocks_4_1_x"])
    shaped = shape(given, Shape(blocks="IN04:0.5"))
    assert shaped.layers["odd.layer"] is given.layers["odd.layer"]
    assert (
        relative_error(
            dense(shaped.layers["lora_unet_input_blocks_4_1_x"]),
            0.5 * dense(given.layers["lora_unet_input_blocks_4_1_x"]),
        )
        < 1e-7
    )
    with pytest.raises(InputError, match="expected one of IN04, REST"):
        shape(given, Shape(blocks="MID:0.5"))
