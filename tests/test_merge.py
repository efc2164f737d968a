"""Merging: the merged change is the weighted sum of the changes, and what cannot be merged is said."""

from __future__ import annotations

import json

import pytest

from tests.adapters import dense, make_adapter, make_layer, relative_error
from trilora_core.errors import InputError
from trilora_core.fileformat import Adapter, read_adapter, write_adapter
from trilora_core.merge import METHODS, merge

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
    cut, report = merge([one, two], [1.0, 1.0], rank=2)
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
    merged, report = merge([one, one], [1.0, -1.0], rank=2)
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
    merged, _ = merge([one, two], [0.7, 0.5], rank=4)
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
        ([make_adapter([A])], {"rank": -1}, "rank is -1"),
        ([make_adapter([A])], {"rank": 1.5}, "rank is 1.5"),
        ([make_adapter([A])], {"method": "ties"}, "method is 'ties'; known: sum"),
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


def test_methods_are_a_list_of_names():
    assert list(METHODS) == ["sum"]
