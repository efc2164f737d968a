"""The report of a merge: overlaps as `spectral.overlap` has them, shares that add up, warnings that mean something."""

from __future__ import annotations

import json

import pytest
import torch

from tests.adapters import dense, make_adapter, make_layer
from trilora_core.fileformat import Adapter, Layer
from trilora_core.merge import merge
from trilora_core.merge_methods import Layers
from trilora_core.merge_report import Interference, interference
from trilora_core.spectral import SVD, canonical, overlap

A, B, C = (f"lora_unet_down_blocks_0_attentions_{index}_proj_in" for index in range(3))


def stacked(layers: list[Layer]) -> SVD:
    return SVD(*(torch.stack(parts) for parts in zip(*(layer.svd for layer in layers), strict=True)))


def met(*svds: SVD) -> Interference:
    """Of the first two in the given order."""
    return Interference(
        *(part[:, 0, 1] for part in interference(Layers([A], range(len(svds)), svds, [1.0] * len(svds))))
    )


def test_interference_is_the_overlap_of_each_layer_and_the_cosine_of_the_changes():
    first = [make_layer(20, 30, 4, seed=seed) for seed in range(3)]
    second = [make_layer(20, 30, 2, seed=seed + 10) for seed in range(3)]
    found = met(stacked(first), stacked(second))
    for index, (a, b) in enumerate(zip(first, second, strict=True)):
        assert float(found.write[index]) == pytest.approx(overlap(a.svd, b.svd, side="out", weighted=True), rel=1e-4)
        assert float(found.read[index]) == pytest.approx(overlap(a.svd, b.svd, side="in", weighted=True), rel=1e-4)
        cosine = (dense(a) * dense(b)).sum() / (dense(a).norm() * dense(b).norm())
        assert float(found.cosine[index]) == pytest.approx(float(cosine), abs=1e-6)


def test_interference_with_itself_its_opposite_and_nothing():
    one = stacked([make_layer(20, 30, 4)])
    zero = stacked([Layer(canonical(torch.zeros(20, 2), torch.ones(2, 30)))])
    same, opposite = met(one, one, zero), met(one, SVD(one.u, one.s, -one.vh))
    assert [float(part) for part in same[:3]] == pytest.approx([1.0, 1.0, 1.0], abs=1e-6)
    assert float(opposite.cosine) == pytest.approx(-1.0, abs=1e-6)
    assert [float(part) for part in met(one, zero)] == [0.0, 0.0, 0.0, 0.0]


def begun_alike(seed: int, *, noise: float = 0.1) -> Adapter:
    """Two of these share their random `down` and have learned an `up` of their own."""
    start, own = torch.Generator().manual_seed(0), torch.Generator().manual_seed(seed)
    layers = {}
    for stem in (A, B, C):
        down = torch.randn(4, 64, generator=start)
        up, moved = torch.randn(48, 4, generator=own), noise * torch.randn(4, 64, generator=own)
        layers[stem] = Layer(canonical(up, down + moved))
    return Adapter(layers, {"modelspec.title": f"t{seed}"})


def test_a_shared_random_start_is_named():
    _, report = merge([begun_alike(1), begun_alike(2)], [1.0, 1.0])
    (remark,) = report.remarks()
    assert "t1 and t2 read the same in 100% of their layers but write elsewhere" in remark
    assert report.pairs[0].same_down == 1.0


@pytest.mark.parametrize(
    "others",
    [
        [begun_alike(1), make_adapter([A, B, C], size=64)],
        [begun_alike(1), begun_alike(1)],
        [begun_alike(1, noise=3.0), begun_alike(2, noise=3.0)],
    ],
    ids=["other layers", "the same adapter", "moved far"],
)
def test_no_other_overlap_is_taken_for_a_shared_start(others):
    if others[0].layers[A].svd.u.shape != others[1].layers[A].svd.u.shape:
        others[1] = Adapter({stem: make_layer(48, 64, 4, seed=5) for stem in (A, B, C)}, {})
    assert merge(others, [1.0, 1.0])[1].remarks() == []


def test_ranks_as_large_as_the_layer_overlap_by_their_size_alone():
    full = [Adapter({A: make_layer(16, 8, 6, seed=seed)}, {}) for seed in range(2)]
    assert merge(full, [1.0, 1.0])[1].pairs[0].same_down == 0.0


def test_adapters_without_a_common_layer_are_told_so():
    told = {"modelspec__architecture": "stable-diffusion-v1/lora"}
    _, report = merge([make_adapter([A], **told), make_adapter([B], **told)], [1.0, 1.0], method="ties")
    assert report.remarks() == ["the adapters have no layer in common: each passes through, whatever the method"]
    assert report.kept_energy == 1.0 and report.pairs == ()


def test_what_was_left_out_is_a_share_of_each_adapter():
    one, two = make_adapter([A, B]), make_adapter([A], seed=7)
    _, report = merge([one, two], [2.0, -1.0], method="orthogonal")
    write = two.layers[A].svd.u.new_tensor(0.0)
    first, second = one.layers[A].svd, two.layers[A].svd
    write, read = first.u @ first.u.T, first.vh.T @ first.vh
    inside = (write @ dense(two.layers[A]).float() @ read).square().sum() / dense(two.layers[A]).square().sum()
    assert report.removed == pytest.approx((0.0, float(inside)), rel=1e-4)
    own = [4 * dense(one.layers[A]).square().sum(), dense(two.layers[A]).square().sum()]
    assert report.layers[A].removed == pytest.approx(float(inside * own[1] / (own[0] + own[1])), rel=1e-4)
    assert second.s.shape == (3,)


def test_the_report_is_lines_and_json():
    one, two = begun_alike(1), begun_alike(2)
    _, report = merge([one, two], [0.7, 0.5], method="tsv")
    lines = report.lines()
    assert lines[0] == "tsv: 3 layers are in more than one file, 0 in one only; rank 4"
    assert lines[1] == "kept 100.00% of the energy at rank 4"
    assert lines[2].startswith("left out by tsv: ") and "of t1, " in lines[2]
    assert any(line.startswith("t1 and t2 overlap: write 0.") for line in lines)
    told = json.loads(json.dumps(report.data()))
    assert told["weights"] == [0.7, 0.5] and told["layers"][A]["owners"] == [0, 1]
    assert set(told["pairs"][0]) == {"first", "second", "layers", "write", "read", "cosine", "same_down"}
