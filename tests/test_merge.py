"""Merging: the merged change is the weighted sum of the changes, and what cannot be merged is said."""

from __future__ import annotations

import json

import pytest
import torch

from tests.adapters import dense, make_adapter, make_layer, relative_error
from trilora_core.errors import InputError
from trilora_core.fileformat import Adapter, Layer, read_adapter, write_adapter
from trilora_core.merge import METHODS, MergeOptions, merge
from trilora_core.spectral import SVD

A, B, C = (f"lora_unet_down_blocks_0_attentions_{index}_proj_in" for index in range(3))
SD15 = {"modelspec__architecture": "stable-diffusion-v1/lora"}


def test_the_sum_is_the_weighted_sum_of_the_changes():
    one, two = make_adapter([A, B], **SD15), make_adapter([A, C], seed=7, **SD15)
    merged, report = merge([one, two], [0.7, -0.5])
    wanted = {
        A: 0.7 * dense(one.layers[A]) - 0.5 * dense(two.layers[A]),
        B: 0.7 * dense(one.layers[B]),
        C: -0.5 * dense(two.layers[C]),
    }
    assert list(merged.layers) == [A, B, C]
    for stem, change in wanted.items():
        assert relative_error(dense(merged.layers[stem]), change) < 1e-5
    assert merged.layers[A].svd.s.shape == (6,)
    assert (report.shared, report.single) == (1, 2)
    assert report.kept_energy == 1.0


def test_a_rank_keeps_the_strongest_directions_and_says_how_much():
    one, two = make_adapter([A, B]), make_adapter([A, B], seed=7)
    whole, _ = merge([one, two], [1.0, 1.0])
    cut, report = merge([one, two], [1.0, 1.0], options=MergeOptions(rank=2))
    for stem in (A, B):
        assert cut.layers[stem].svd.s.shape == (2,)
        lost = (dense(cut.layers[stem]) - dense(whole.layers[stem])).square().sum()
        before = dense(whole.layers[stem]).square().sum()
        assert report.layer_energy[stem] == pytest.approx(float(1 - lost / before), rel=1e-4)
    assert 0.3 < report.kept_energy < 1.0


def test_one_adapter_alone_is_scaled():
    one = make_adapter([A])
    assert relative_error(dense(merge([one], [2.0])[0].layers[A]), 2 * dense(one.layers[A])) < 1e-6


def test_opposite_weights_leave_nothing_and_full_energy():
    one = make_adapter([A])
    merged, report = merge([one, one], [1.0, -1.0], options=MergeOptions(rank=2))
    assert dense(merged.layers[A]).norm() < 1e-5 * dense(one.layers[A]).norm()
    assert 0.0 <= report.kept_energy <= 1.0


def test_adapters_of_one_model_without_a_common_layer_merge():
    merged, report = merge([make_adapter([A], **SD15), make_adapter([B], **SD15)], [1.0, 1.0])
    assert list(merged.layers) == [A, B]
    assert report.shared == 0


def test_a_file_that_did_not_tell_its_model_takes_the_names_of_the_other():
    unet = "lora_unet_{}_proj_in"
    sdxl = make_adapter([unet.format("input_blocks_4_1")], ss_base_model_version="sdxl_base_v1-0")
    other = make_adapter([unet.format("down_blocks_1_attentions_0")], seed=7)
    merged, report = merge([other, sdxl], [1.0, 1.0])
    assert list(merged.layers) == [unet.format("input_blocks_4_1")]
    assert report.shared == 1


def test_a_1x1_convolution_and_a_linear_layer_are_the_same():
    one, two = Adapter({A: make_layer(8, 8, 2, kernel=(1, 1))}, {}), Adapter({A: make_layer(8, 8, 2)}, {})
    assert merge([one, two], [1.0, 1.0])[0].layers[A].kernel == (1, 1)


def test_the_merged_file_says_where_it_came_from(tmp_path):
    one = make_adapter([A], modelspec__title="cat", modelspec__trigger_phrase="sks cat", ss_seed="1", **SD15)
    two = make_adapter([A], modelspec__title="ink", modelspec__trigger_phrase="inkwash, sks cat", ss_seed="1", **SD15)
    write_adapter(tmp_path / "one.safetensors", one)
    one = read_adapter(tmp_path / "one.safetensors")
    merged, _ = merge([one, two], [0.7, 0.5], options=MergeOptions(rank=4))
    assert merged.metadata["modelspec.merged_from"] == "cat, ink"
    assert merged.metadata["modelspec.trigger_phrase"] == "sks cat, inkwash"
    assert merged.metadata["modelspec.architecture"] == "stable-diffusion-v1/lora"
    assert "ss_seed" not in merged.metadata
    record = json.loads(merged.metadata["trilora.merge"])
    assert (record["method"], record["rank"]) == ("sum", 4)
    assert record["from"][0] == {"name": "cat", "weight": 0.7, "sha256": one.metadata["sshs_model_hash"]}
    write_adapter(tmp_path / "merged.safetensors", merged)
    assert (
        relative_error(dense(read_adapter(tmp_path / "merged.safetensors").layers[A]), dense(merged.layers[A])) < 1e-3
    )


@pytest.mark.parametrize(
    ("adapters", "options", "words"),
    [
        ([], {"weights": []}, "0 adapters and 0 weights"),
        ([make_adapter([A])], {"weights": [1.0, 2.0]}, "1 adapters and 2 weights"),
        ([make_adapter([A])], {"weights": [float("nan")]}, "wanted finite numbers"),
        ([make_adapter([A])], {"weights": [float("inf")]}, "wanted finite numbers"),
        ([make_adapter([A])], {"method": "slerp"}, "method is 'slerp'; known: sum, concatenate, ties"),
        ([make_adapter([A])], {"method": "knots"}, "knots reconciles two adapters or more, and one was given"),
        ([make_adapter([A])], {"method": "tsv"}, "take sum, or give another"),
        ([make_adapter([A])] * 2, {"method": "regmean"}, "for each of the 2 adapters, and 0 were given"),
        (
            [make_adapter([A])] * 2,
            {"method": "concatenate", "options": MergeOptions(rank=4)},
            "concatenate keeps every direction, so it takes no rank and no keep_energy; take sum to cut",
        ),
        (
            [make_adapter([A])] * 2,
            {"method": "concatenate", "options": MergeOptions(keep_energy=0.9)},
            "takes no rank and no keep_energy",
        ),
        ([Adapter({}, {"modelspec.title": "cat"})], {}, "cat has no layers"),
        (
            [make_adapter([A], modelspec__title="cat", **SD15), make_adapter([A], ss_base_model_version="flux1")],
            {},
            "cat is for sd15, adapter 2 is for flux",
        ),
        ([make_adapter(["x.y"]), make_adapter(["x.z"])], {}, "adapter 1 and adapter 2 share no layer"),
        ([make_adapter([A]), make_adapter([A], size=8)], {}, f"layer {A} is 16 x 16 and 8 x 8"),
        (
            [Adapter({A: make_layer(8, 36, 2, kernel=(3, 3))}, {}), Adapter({A: make_layer(8, 36, 2)}, {})],
            {},
            "8 x 4 x 3 x 3 and 8 x 36",
        ),
    ],
)
def test_what_cannot_be_merged(adapters, options, words):
    weights = options.pop("weights", [1.0] * len(adapters)) if options else [1.0] * len(adapters)
    with pytest.raises(InputError) as caught:
        merge(adapters, weights, **options)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"rank": -1}, "rank is -1; wanted a whole number from 0 up"),
        ({"rank": 1.5}, "rank is 1.5"),
        ({"density": 0.0}, "density is 0.0; wanted a finite number above 0 and at most 1"),
        ({"density": 1.01}, "density is 1.01"),
        ({"keep_energy": 0.0}, "keep_energy is 0.0"),
        ({"keep_energy": float("nan")}, "keep_energy is nan"),
        ({"seed": -1}, "seed is -1"),
        ({"prior_weight": -0.1}, "prior_weight is -0.1"),
    ],
)
def test_options_that_make_no_sense(options, words):
    with pytest.raises(InputError) as caught:
        MergeOptions(**options)
    assert words in str(caught.value)


def test_methods_are_a_list_of_names():
    """Saved workflows hold them."""
    assert list(METHODS) == [
        "sum",
        "concatenate",
        "ties",
        "dare",
        "dare_ties",
        "knots",
        "tsv",
        "orthogonal",
        "regmean",
    ]


def test_chained_merges_that_keep_all_are_one_merge():
    one, two, three = (make_adapter([A, B], seed=seed) for seed in (0, 7, 14))
    inner, _ = merge([one, two], [0.7, -0.5])
    chained, report = merge([inner, three], [1.0, 0.3])
    at_once, _ = merge([one, two, three], [0.7, -0.5, 0.3])
    for stem in (A, B):
        wanted = 0.7 * dense(one.layers[stem]) - 0.5 * dense(two.layers[stem]) + 0.3 * dense(three.layers[stem])
        assert relative_error(dense(chained.layers[stem]), wanted) < 1e-6
        assert relative_error(dense(at_once.layers[stem]), wanted) < 1e-6
    assert report.kept_energy == 1.0


def test_an_energy_cut_gives_each_layer_its_own_rank():
    flat, steep = torch.ones(6), torch.tensor([10.0, 1.0, 1.0, 0.1, 0.1, 0.1])
    basis = torch.linalg.qr(torch.randn(16, 6, generator=torch.Generator().manual_seed(0))).Q
    one = Adapter({A: Layer(SVD(basis, flat, basis.T)), B: Layer(SVD(basis, steep, basis.T))}, {})
    cut, report = merge([one], [2.0], options=MergeOptions(keep_energy=0.9))
    assert [len(cut.layers[stem].svd.s) for stem in (A, B)] == [6, 1]
    assert [report.layers[stem].rank for stem in (A, B)] == [6, 1]
    assert report.layer_energy[B] == pytest.approx(100 / 102.03, rel=1e-5)
    both, _ = merge([one], [2.0], options=MergeOptions(keep_energy=0.9, rank=3))
    assert [len(both.layers[stem].svd.s) for stem in (A, B)] == [3, 1], "the lower of the two holds"


def test_an_energy_cut_of_a_dense_method_counts_what_recompression_lost():
    one, two = make_adapter([A], rank=4), make_adapter([A], rank=4, seed=7)
    options = {"density": 0.5, "rank": 16}
    whole, _ = merge([one, two], [1.0, 1.0], method="ties", options=MergeOptions(**options))
    cut, report = merge([one, two], [1.0, 1.0], method="ties", options=MergeOptions(**options, keep_energy=0.8))
    values = whole.layers[A].svd.s.double().square()
    wanted = int((values.cumsum(0) < 0.8 * values.sum()).sum()) + 1
    assert len(cut.layers[A].svd.s) == wanted < 16
    assert 0.8 <= report.kept_energy < 1.0


def test_ranks_1_and_256_together():
    one, two = make_adapter([A], size=300, rank=1), make_adapter([A], size=300, rank=256, seed=3)
    merged, _ = merge([one, two], [1.0, 1.0])
    assert merged.layers[A].svd.s.shape == (257,)
    assert relative_error(dense(merged.layers[A]), dense(one.layers[A]) + dense(two.layers[A])) < 1e-5


def test_layers_of_the_text_encoder_are_merged_too():
    stem = "lora_te_text_model_encoder_layers_0_self_attn_q_proj"
    one, two = make_adapter([A, stem], **SD15), make_adapter([A, stem], seed=7, **SD15)
    merged, report = merge([one, two], [0.5, 0.5], method="knots")
    assert report.shared == 2 and len(merged.layers[stem].svd.s) == 6


def test_progress_counts_layers_and_may_stop():
    seen = []
    adapters = [make_adapter([A, B]), make_adapter([A, B, C], seed=7)]
    merge(adapters, [1.0, 1.0], method="ties", progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (3, 3) and all(total == 3 for _, total in seen)

    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        merge(adapters, [1.0, 1.0], progress=stop)
