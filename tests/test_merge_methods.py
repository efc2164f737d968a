"""Each merge method beside its paper's formula on dense float64 matrices, and beside PEFT where PEFT is right."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from tests.adapters import dense, make_adapter, make_layer, relative_error
from trilora_core.fileformat import Adapter, Layer
from trilora_core.merge import MergeOptions, merge
from trilora_core.merge_dense import dare_mask
from trilora_core.spectral import canonical

A, B = (f"lora_unet_down_blocks_0_attentions_{index}_proj_in" for index in range(2))
EXACT = 1e-5  # relative Frobenius error of float32 against float64
WEIGHTS = [0.8, 0.5, -0.6]
OUT, IN, RANKS = 24, 40, (5, 3, 4)
WHOLE = 24  # a rank that cuts nothing from the dense methods


def three() -> list[Adapter]:
    layers = [make_layer(OUT, IN, rank, seed=10 + rank) for rank in RANKS]
    return [Adapter({A: layer}, {"modelspec.title": f"t{index}"}) for index, layer in enumerate(layers)]


def updates(adapters: list[Adapter]) -> list[Tensor]:
    return [dense(adapter.layers[A]) for adapter in adapters]


def trim(update: Tensor, density: float) -> Tensor:
    """TIES, step 1, in plain terms: sort by magnitude, keep the first."""
    kept = torch.zeros(update.numel(), dtype=update.dtype)
    order = update.flatten().abs().argsort(descending=True)[: int(density * update.numel())]
    kept[order] = update.flatten()[order]
    return kept.view_as(update)


def elect_and_mean(parts: list[Tensor], weights: list[float]) -> Tensor:
    """TIES, steps 2 and 3, entry by entry; a negative weight turns its update around first."""
    stack = torch.stack([math.copysign(1.0, w) * part for part, w in zip(parts, weights, strict=True)])
    elected = torch.where(stack.sum(0) >= 0, 1.0, -1.0)
    agrees = stack.sign() == elected
    sizes = torch.tensor([abs(w) for w in weights], dtype=stack.dtype).view(-1, 1, 1)
    return (stack * sizes * agrees).sum(0) / agrees.sum(0).clamp_min(1)


def merged(adapters: list[Adapter], method: str, weights: list[float] | None = None, **options: float) -> Tensor:
    chosen = MergeOptions(**options)
    found, _ = merge(adapters, weights or [1.0] * len(adapters), method=method, options=chosen)
    return dense(found.layers[A])


@pytest.mark.parametrize("density", [0.2, 0.5, 1.0])
def test_ties_is_its_formula(density):
    adapters = three()
    wanted = elect_and_mean([trim(update, density) for update in updates(adapters)], WEIGHTS)
    assert relative_error(merged(adapters, "ties", WEIGHTS, rank=WHOLE, density=density), wanted) < EXACT


@pytest.mark.parametrize("density", [0.3, 0.9])
def test_ties_is_that_of_peft(density):
    utils = pytest.importorskip("peft.utils.merge_utils")
    adapters, weights = three(), [0.8, 0.5, 0.6]
    wanted = utils.ties(updates(adapters), torch.tensor(weights, dtype=torch.float64), density)
    assert relative_error(merged(adapters, "ties", weights, rank=WHOLE, density=density), wanted) < EXACT


@pytest.mark.parametrize(("method", "name"), [("dare", "dare_linear"), ("dare_ties", "dare_ties")])
def test_dare_is_its_formula_and_that_of_peft_with_the_same_mask(method, name, monkeypatch):
    utils = pytest.importorskip("peft.utils.merge_utils")
    adapters, density, weights = three(), 0.4, [0.8, 0.5, 0.6]
    masks = [dare_mask((OUT, IN), density, 7, A, index) for index in range(3)]
    thinned = [update * mask / density for update, mask in zip(updates(adapters), masks, strict=True)]
    if method == "dare":
        wanted = sum(weight * part for weight, part in zip(weights, thinned, strict=True))
    else:
        wanted = elect_and_mean(thinned, weights)
    found = merged(adapters, method, weights, rank=WHOLE, density=density, seed=7)
    assert relative_error(found, wanted) < EXACT
    if not float(utils.random_pruning(torch.ones(99), 0.5, rescale=True).max()) > 1:
        pytest.skip("DARE of peft before 0.19 scales nothing")
    drawn = iter(masks)
    monkeypatch.setattr(torch, "bernoulli", lambda like: next(drawn).to(like))
    of_peft = getattr(utils, name)(updates(adapters), torch.tensor(weights, dtype=torch.float64), density)
    assert relative_error(found, of_peft) < EXACT


def test_dare_repeats_and_depends_on_seed_layer_and_adapter():
    masks = [dare_mask((OUT, IN), 0.5, *key) for key in ((0, A, 0), (0, A, 0), (1, A, 0), (0, B, 0), (0, A, 1))]
    assert torch.equal(masks[0], masks[1])
    assert all(not torch.equal(masks[0], mask) for mask in masks[2:])
    assert masks[0].float().mean() == pytest.approx(0.5, abs=0.05)
    one, two = (merged(three(), "dare", seed=seed) for seed in (3, 3))
    assert torch.equal(one, two)
    assert relative_error(merged(three(), "dare", seed=4), one) > 0.1


@pytest.mark.parametrize("method", ["ties", "dare", "dare_ties"])
def test_dense_methods_are_cut_to_the_ranks_together_and_say_what_that_loses(method):
    adapters = three()
    whole = merged(adapters, method, WEIGHTS, rank=WHOLE)
    found, report = merge(adapters, WEIGHTS, method=method)
    assert found.layers[A].svd.s.shape == (sum(RANKS),)
    lost = float((dense(found.layers[A]) - whole).square().sum() / whole.square().sum())
    best = float(torch.linalg.svdvals(whole)[sum(RANKS) :].square().sum() / whole.square().sum())
    assert 1 - report.kept_energy == pytest.approx(lost, rel=1e-3)
    assert lost == pytest.approx(best, rel=1e-3) and lost > 0.01


@pytest.mark.parametrize("density", [0.3, 1.0])
def test_knots_is_ties_in_the_shared_basis(density):
    adapters = three()
    u, s, vh = torch.linalg.svd(torch.cat(updates(adapters), 1), full_matrices=False)
    there = s > 1e-6 * s[0]
    parts = [s[there, None] * part for part in vh[there].split(IN, 1)]
    wanted = u[:, there] @ elect_and_mean([trim(part, density) for part in parts], WEIGHTS)
    found, report = merge(adapters, WEIGHTS, method="knots", options=MergeOptions(density=density))
    assert relative_error(dense(found.layers[A]), wanted) < EXACT
    assert found.layers[A].svd.s.shape == (sum(RANKS),)
    assert report.kept_energy == 1.0 and all(0 < share < 1 for share in report.removed)


def polar(columns: Tensor) -> Tensor:
    left, _, right = torch.linalg.svd(columns, full_matrices=False)
    return left @ right


@pytest.mark.parametrize("density", [0.5, 1.0])
def test_tsv_is_the_procrustes_of_the_concatenated_vectors(density):
    adapters = three()
    parts = []
    for update, rank in zip(updates(adapters), RANKS, strict=True):
        u, s, vh = torch.linalg.svd(update, full_matrices=False)
        count = math.ceil(density * rank)
        parts.append((u[:, :count], s[:count], vh[:count]))
    u, vh = torch.cat([part[0] for part in parts], 1), torch.cat([part[2] for part in parts])
    s = torch.cat([weight * part[1] for weight, part in zip(WEIGHTS, parts, strict=True)])
    wanted = polar(u) * s @ polar(vh.T).T
    found, report = merge(adapters, WEIGHTS, method="tsv", options=MergeOptions(density=density))
    assert relative_error(dense(found.layers[A]), wanted) < EXACT
    for index, share in enumerate(report.removed):
        values = torch.linalg.svdvals(updates(adapters)[index]).square()
        rest = values[len(parts[index][1]) :].sum() / values.sum()
        assert share == pytest.approx(float(rest), abs=1e-5)


def test_tsv_counts_directions_that_both_have_once():
    one = make_adapter([A])
    assert relative_error(merged([one, one], "tsv", density=1.0), dense(one.layers[A])) < EXACT


def projector(columns: Tensor) -> Tensor:
    return columns @ torch.linalg.pinv(columns)


def test_orthogonal_removes_what_lies_in_the_spaces_of_those_before():
    adapters = three()
    parts, lost = [], []
    for index, update in enumerate(updates(adapters)):
        before = updates(adapters)[:index]
        inside = torch.zeros_like(update)
        if before:
            write = projector(torch.cat([torch.linalg.svd(x).U[:, :r] for x, r in zip(before, RANKS, strict=False)], 1))
            read = projector(
                torch.cat([torch.linalg.svd(x.T).U[:, :r] for x, r in zip(before, RANKS, strict=False)], 1)
            )
            inside = write @ update @ read
        parts.append(update - inside)
        lost.append(float(inside.square().sum() / update.square().sum()))
    wanted = sum(weight * part for weight, part in zip(WEIGHTS, parts, strict=True))
    found, report = merge(adapters, WEIGHTS, method="orthogonal")
    assert relative_error(dense(found.layers[A]), wanted) < EXACT
    assert report.removed == pytest.approx(lost, abs=1e-6)
    assert report.removed[0] == 0.0 and report.removed[2] > 0.01
    two, _ = merge(adapters[:2], [1.0, 1.0], method="orthogonal")
    energies = [part.square().sum() for part in parts[:2]]
    assert dense(two.layers[A]).square().sum() == pytest.approx(float(sum(energies)), rel=1e-5), "energies add"


def test_orthogonal_takes_nothing_from_what_writes_elsewhere_or_all_from_a_copy():
    one = make_layer(16, 16, 3)
    up, down = torch.linalg.qr(torch.randn(16, 6, generator=torch.Generator().manual_seed(1))).Q, one.svd.vh
    same_down = [Adapter({A: Layer(canonical(part, down))}, {}) for part in (up[:, :3], up[:, 3:])]
    _, report = merge(same_down, [1.0, 1.0], method="orthogonal")
    assert max(report.removed) < 1e-6
    copy = Adapter({A: one}, {})
    found, report = merge([copy, copy, same_down[0]], [1.0, 1.0, 1.0], method="orthogonal")
    assert report.removed[:2] == pytest.approx((0.0, 1.0), abs=1e-6)
    third = dense(same_down[0].layers[A])
    write = projector(one.svd.u.double())
    wanted = dense(one) + third - write @ third @ projector(one.svd.vh.double().T)
    assert relative_error(dense(found.layers[A]), wanted) < EXACT, "a copy occupies nothing beyond its first"


def test_cat_of_peft_is_the_sum():
    peft = pytest.importorskip("peft")
    adapters, weights = three(), [0.8, 0.5, 0.6]
    model = _peft_model(peft, adapters)
    model.base_model.add_weighted_adapter([f"t{i}" for i in range(3)], weights, "cat", combination_type="cat")
    of_peft = model.base_model.model.layer.get_delta_weight("cat").double()
    for method in ("sum", "concatenate"):
        assert relative_error(merged(adapters, method, weights), of_peft) < EXACT


def test_linear_of_peft_is_not_the_sum():
    """It adds the factors, so that every up meets every other down."""
    peft = pytest.importorskip("peft")
    adapters = [Adapter({A: make_layer(OUT, IN, 4, seed=seed)}, {}) for seed in range(2)]
    model = _peft_model(peft, adapters)
    model.base_model.add_weighted_adapter(["t0", "t1"], [1.0, 1.0], "lin", combination_type="linear")
    of_peft = model.base_model.model.layer.get_delta_weight("lin").double()
    assert relative_error(of_peft, sum(updates(adapters))) > 0.5
    assert relative_error(merged(adapters, "sum"), sum(updates(adapters))) < EXACT


def _peft_model(peft, adapters: list[Adapter]):
    class Small(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(IN, OUT, bias=False)

    def config(rank: int):
        return peft.LoraConfig(r=rank, lora_alpha=rank, target_modules=["layer"])

    ranks = [len(adapter.layers[A].svd.s) for adapter in adapters]
    model = peft.get_peft_model(Small(), config(ranks[0]), adapter_name="t0")
    for index, rank in enumerate(ranks[1:], start=1):
        model.add_adapter(f"t{index}", config(rank))
    layer = model.base_model.model.layer
    for index, adapter in enumerate(adapters):
        u, s, vh = adapter.layers[A].svd
        layer.lora_A[f"t{index}"].weight.data = vh.clone()
        layer.lora_B[f"t{index}"].weight.data = u * s
    return model


@pytest.mark.parametrize("method", ["ties", "dare", "dare_ties", "knots", "tsv", "orthogonal"])
def test_hard_cases_stay_finite(method):
    """Ranks 1 and 64 together, a zero adapter, one adapter twice, ranks above the layer's size."""
    thin, thick = make_layer(32, 48, 1), make_layer(32, 48, 64, seed=1)
    zero = Layer(canonical(torch.zeros(32, 2), torch.randn(2, 48, generator=torch.Generator().manual_seed(2))))
    alone = dense(thick)
    for layers in ([thin, thick], [thick, zero], [zero, thick], [thick, thick], [zero, zero]):
        adapters = [Adapter({A: layer}, {}) for layer in layers]
        found, report = merge(adapters, [1.0, 1.0], method=method, options=MergeOptions(density=1.0))
        result = dense(found.layers[A])
        assert result.isfinite().all() and 0 <= report.kept_energy <= 1
        if {id(layer) for layer in layers} == {id(zero), id(thick)}:
            assert relative_error(result, alone) < 1e-4, "a zero adapter changes nothing at density 1"


@pytest.mark.parametrize("method", ["ties", "dare", "dare_ties", "knots", "tsv", "orthogonal"])
def test_layers_of_different_shapes_and_owners_are_each_merged_alone(method):
    """Batches give what single layers give, and a layer of one adapter passes through whole."""
    first = Adapter({A: make_layer(16, 24, 3), B: make_layer(16, 24, 3, seed=1), "x.y": make_layer(8, 8, 2)}, {})
    second = Adapter({A: make_layer(16, 24, 3, seed=2), B: make_layer(16, 24, 3, seed=3)}, {})
    both, report = merge([first, second], [0.7, 0.5], method=method)
    for stem in (A, B):
        alone, _ = merge(
            [Adapter({stem: adapter.layers[stem]}, {}) for adapter in (first, second)], [0.7, 0.5], method=method
        )
        assert relative_error(dense(both.layers[stem]), dense(alone.layers[stem])) < EXACT
    assert relative_error(dense(both.layers["x.y"]), 0.7 * dense(first.layers["x.y"])) < 1e-6
    assert report.single == 1


@pytest.mark.parametrize("method", ["ties", "dare", "knots", "tsv", "orthogonal"])
def test_a_weight_of_zero_leaves_an_adapter_out(method):
    one, two, three_ = three()
    with_it, _ = merge([one, two, three_], [1.0, 0.5, 0.0], method=method)
    without, _ = merge([one, two], [1.0, 0.5], method=method)
    assert relative_error(dense(with_it.layers[A]), dense(without.layers[A])) < EXACT
