from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from torch import nn
from torch.func import functional_call

from tests.toy import WIDTH, ToyDenoiser
from trilora_core.adapter import TriLoRA
from trilora_core.branch import Target
from trilora_core.config import AdapterConfig
from trilora_core.errors import InputError
from trilora_core.fileformat import Layer
from trilora_core.recompute import checkpointed
from trilora_core.spectral import SVD, canonical
from trilora_core.start import SIGMA_INITS, derive_seed


def make(targets, seed=0, data="d", **options):
    return TriLoRA.create(targets, AdapterConfig(**options), seed=seed, data_hash=data)


def randomise(adapter: TriLoRA, seed: int = 1) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in adapter.trainable():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))


def dense(layer: Layer) -> torch.Tensor:
    return layer.svd.u * layer.svd.s @ layer.svd.vh


def branch_delta(branch) -> torch.Tensor:
    return (branch.up @ branch.gained_down()).detach()


@pytest.mark.parametrize("init", sorted(SIGMA_INITS.keys() - {"contrast"}))
def test_inits_of_sigma_against_a_dense_svd(init):
    torch.manual_seed(0)
    weight = torch.randn(40, 24, dtype=torch.float64) * torch.linspace(2, 0.1, 24, dtype=torch.float64)
    module = nn.Linear(24, 40, bias=False)
    module.weight.data = weight.float()
    adapter = make({"a": Target(module)}, rank=4, init=init)
    values = torch.linalg.svdvals(weight)[:4]
    wanted = {
        "svd-mean": values / values.mean(),
        "svd": values,
        "svd-max": values / values[0],
        "svd-fro": values / weight.norm(),
        "ones": torch.ones(4, dtype=torch.float64),
    }[init]
    assert torch.allclose(adapter.branches["a"].sigma.double(), wanted, rtol=1e-2)
    assert adapter.branches["a"].up.abs().max() == 0
    assert adapter.branches["a"].down.std().item() == pytest.approx(1 / 4, rel=0.25)


@pytest.mark.parametrize("init", sorted(SIGMA_INITS.keys() - {"contrast"}))
def test_a_trained_sigma_is_not_the_start_of_the_next_run(init):
    """The singular values of a weight are computed once in a process; training must not move them."""
    module = nn.Linear(12, 10)
    first = make({"a": Target(module)}, rank=4, init=init).branches["a"].sigma
    start = first.detach().clone()
    with torch.no_grad():
        first.mul_(3.0)
    assert torch.equal(make({"a": Target(module)}, rank=4, init=init).branches["a"].sigma, start)


def test_what_is_read_of_a_weight_starts_sigma_and_its_shape_needs_no_reading():
    module, reads = nn.Linear(12, 10), []

    def doubled(weight):
        reads.append(weight)
        return 2 * weight

    plain = make({"a": Target(module)}, rank=4, init="svd").branches["a"].sigma
    target = Target(module, read=doubled)
    assert torch.allclose(make({"a": target}, rank=4, init="svd").branches["a"].sigma, 2 * plain)
    count = len(reads)
    assert target.shape == (10, 12) and Target(module, (2, 6), read=doubled).shape == (4, 12)
    assert Target(nn.Conv2d(3, 6, 3)).shape == (6, 27) and len(reads) == count
    assert torch.equal(Target(module, (2, 6), read=doubled).base_weight(), 2 * module.weight[2:6])


def test_zero_base_weight_starts_sigma_at_one():
    module = nn.Linear(8, 8, bias=False)
    nn.init.zeros_(module.weight)
    assert make({"a": Target(module)}, rank=2).branches["a"].sigma.tolist() == [1.0, 1.0]


@pytest.mark.parametrize("init", ["svd", "svd-mean"])
def test_a_base_weight_of_lower_rank_starts_every_sigma_above_zero(init):
    module = nn.Linear(12, 12)
    with torch.no_grad():
        module.weight[2:] = 0
    sigma = make({"a": Target(module)}, rank=4, init=init).branches["a"].sigma
    assert float(sigma.detach().min()) > 0.1 * float(sigma.detach().max()), "one at zero would never learn"


def test_sigma_cache_follows_the_content_of_the_weight():
    module = nn.Linear(8, 8, bias=False)
    first = make({"a": Target(module)}, rank=2, init="svd").branches["a"].sigma
    again = make({"a": Target(module)}, rank=2, init="svd").branches["a"].sigma
    with torch.no_grad():
        module.weight.mul_(2)
    changed = make({"a": Target(module)}, rank=2, init="svd").branches["a"].sigma
    assert torch.equal(first, again) and torch.allclose(changed, 2 * first)


def test_random_rows_depend_on_seed_layer_and_data():
    targets = {"a": Target(nn.Linear(8, 8)), "b": Target(nn.Linear(8, 8))}
    base = make(targets, rank=2)
    downs = [
        base.branches["a"].down,
        base.branches["b"].down,
        make(targets, seed=1, rank=2).branches["a"].down,
        make(targets, data="other", rank=2).branches["a"].down,
    ]
    assert torch.equal(downs[0], make(targets, rank=2).branches["a"].down)
    assert all(not torch.equal(downs[0], other) for other in downs[1:])


def test_seed_is_the_same_everywhere():
    assert derive_seed(0, "lora_unet_mid_block", "hash") == 7790629331699984537


def test_energy_rank_is_chosen_per_layer_and_capped():
    sharp, flat = nn.Linear(32, 32, bias=False), nn.Linear(32, 32, bias=False)
    sharp.weight.data = torch.diag(torch.tensor([10.0, 9.0] + [0.1] * 30))
    flat.weight.data = torch.eye(32)
    adapter = make({"sharp": Target(sharp), "flat": Target(flat)}, rank="energy:0.9", rank_cap=8)
    assert adapter.branches["sharp"].sigma.numel() == 2 and adapter.branches["flat"].sigma.numel() == 8


@pytest.mark.parametrize("companion", [0, 3])
@pytest.mark.parametrize("alpha", [None, 2.0])
def test_outputs_equal_those_of_the_changed_weights(companion, alpha):
    denoiser = ToyDenoiser()
    targets = denoiser.targets()
    adapter = make(targets, rank=4, companion_rank=companion, alpha=alpha)
    randomise(adapter)
    x, cond = torch.randn(2, 4, 4, 4), [torch.randn(3, WIDTH)] * 2
    times, noise = torch.tensor([0.3, 0.6]), torch.randn(2, 4, 4, 4)
    plain = denoiser.predict(x, noise, times, cond)[0]
    with adapter.attach(targets):
        hooked = denoiser.predict(x, noise, times, cond)[0]
    assert torch.equal(denoiser.predict(x, noise, times, cond)[0], plain)
    canonical_layers = adapter.canonical()
    with torch.no_grad():
        for stem, target in targets.items():
            rows = slice(None) if target.rows is None else slice(*target.rows)
            target.module.weight[rows] += dense(canonical_layers[stem]).view_as(target.module.weight[rows])
    changed = denoiser.predict(x, noise, times, cond)[0]
    assert (hooked - plain).abs().max() > 1e-2
    assert torch.allclose(hooked, changed, atol=1e-5)


def test_gradients_equal_those_of_a_dense_parametrisation():
    torch.manual_seed(0)
    module = nn.Linear(6, 5).double()
    adapter = make({"a": Target(module)}, rank=3, alpha=1.5)
    randomise(adapter)
    branch = adapter.branches["a"]
    x = torch.randn(7, 6).double()
    with adapter.attach({"a": Target(module)}):
        module(x).square().sum().backward()
    factors = [p.detach().double().requires_grad_() for p in (branch.up, branch.sigma, branch.down)]
    weight = module.weight + 0.5 * factors[0] @ torch.diag(factors[1]) @ factors[2]
    (x @ weight.T + module.bias).square().sum().backward()
    for ours, reference in zip((branch.up, branch.sigma, branch.down), factors, strict=True):
        assert torch.allclose(ours.grad.double(), reference.grad, rtol=1e-5)


def test_lora_holds_sigma_at_one():
    adapter = make({"a": Target(nn.Linear(8, 8))}, rank=2, method="lora")
    assert adapter.branches["a"].sigma.tolist() == [1.0, 1.0]
    assert [name for name, p in adapter.named_parameters() if p.requires_grad] == ["a.up", "a.down"]


def test_attach_leaves_no_hook_behind_when_the_body_fails():
    targets = ToyDenoiser().targets()
    adapter = make(targets, rank=2)
    with pytest.raises(KeyError), adapter.attach(targets):
        assert all(target.module._forward_hooks for target in targets.values())
        raise KeyError
    assert not any(target.module._forward_hooks for target in targets.values())


def test_attach_refuses_another_shape_before_it_touches_a_layer():
    good, other = nn.Linear(8, 8), nn.Linear(8, 9)
    adapter = make({"a": Target(good), "b": Target(nn.Linear(8, 8))}, rank=2)
    refuse = pytest.raises(
        InputError, match=r"b: the adapter is for a weight of shape \(8, 8\), the model's is \(9, 8\)"
    )
    with refuse, adapter.attach({"a": Target(good), "b": Target(other)}):
        pass
    with pytest.raises(InputError, match="has no layer b"), adapter.attach({"a": Target(good)}):
        pass
    assert not good._forward_hooks


def test_canonical_folds_companion_and_scale_exactly():
    adapter = make({"a": Target(nn.Linear(12, 10))}, rank=4, companion_rank=2, alpha=1.0)
    randomise(adapter)
    layer = adapter.canonical()["a"]
    assert layer.svd.s.shape == (6,)
    assert torch.allclose(dense(layer), branch_delta(adapter.branches["a"]), atol=1e-5)


@pytest.mark.parametrize("init", ["svd", "ones"])
def test_start_from_reproduces_the_saved_change(init):
    torch.manual_seed(0)
    targets = {"a": Target(nn.Linear(12, 10))}
    saved = Layer(canonical(torch.randn(10, 3), torch.randn(3, 12)))
    text = Layer(SVD(torch.eye(2), torch.ones(2), torch.eye(2)))
    adapter = make(targets, rank=4, init=init, alpha=2.0)
    adapter.start_from({"a": saved, "lora_te_x": text})
    assert torch.allclose(branch_delta(adapter.branches["a"]), dense(saved), atol=1e-5)
    assert adapter.canonical()["lora_te_x"] is text
    lengths = adapter.branches["a"].down[:3].norm(dim=1)
    assert torch.allclose(lengths, torch.full((3,), 12**0.5 / 4))


def test_start_from_says_what_does_not_fit():
    adapter = make({"a": Target(nn.Linear(12, 10))}, rank=2)
    three = Layer(canonical(torch.randn(10, 3), torch.randn(3, 12)))
    with pytest.raises(InputError, match="shares no layer with this model: it has 1 layers such as b"):
        adapter.start_from({"b": three})
    with pytest.raises(InputError, match="a has rank 3, this run 2; set rank to 3 or more"):
        adapter.start_from({"a": three})
    with pytest.raises(InputError, match=r"a is for a weight of shape \(5, 12\)"):
        adapter.start_from({"a": Layer(canonical(torch.randn(5, 2), torch.randn(2, 12)))})


def test_grouped_convolutions_and_empty_models_are_refused():
    with pytest.raises(InputError, match="grouped convolution"):
        make({"a": Target(nn.Conv2d(4, 4, 3, groups=2))}, rank=2)
    with pytest.raises(InputError, match="no layer to adapt"):
        make({}, rank=2)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_bases_train_in_their_own_dtype(dtype):
    module = nn.Linear(8, 8, dtype=dtype).requires_grad_(False)
    adapter = make({"a": Target(module)}, rank=2)
    with adapter.attach({"a": Target(module)}):
        out = module(torch.ones(1, 8, dtype=dtype))
    out.float().sum().backward()
    assert out.dtype is dtype and adapter.branches["a"].up.grad.dtype is torch.float32


def masks(adapter: TriLoRA, seed: int = 0, number: int = 0) -> dict[str, torch.Tensor]:
    with adapter.rank_dropout(seed, number):
        return {stem: branch.mask.clone() for stem, branch in adapter.branches.items()}


def test_rank_dropout_depends_on_seed_and_number_alone():
    targets = {str(i): Target(nn.Linear(64, 64)) for i in range(20)}
    adapter, other = make(targets, rank=32, rank_dropout=0.25), make(targets, rank=32, seed=7, rank_dropout=0.25)
    first, again = torch.cat(list(masks(adapter).values())), torch.cat(list(masks(other).values()))
    assert torch.equal(first, again) and first.unique().tolist() == pytest.approx([0.0, 4 / 3])
    assert abs((first == 0).float().mean() - 0.25) < 0.05
    for seed, number in ((1, 0), (0, 1)):
        assert not torch.equal(first, torch.cat(list(masks(adapter, seed, number).values())))


def test_rank_dropout_ends_with_its_context_and_never_reaches_the_file():
    targets = {"a": Target(nn.Linear(12, 10))}
    adapter = make(targets, rank=4, rank_dropout=0.5)
    randomise(adapter)
    whole = dense(adapter.canonical()["a"])
    with pytest.raises(KeyError), adapter.rank_dropout(0, 0):
        assert adapter.branches["a"].mask is not None
        assert torch.equal(dense(adapter.canonical()["a"]), whole)
        raise KeyError
    assert adapter.branches["a"].mask is None


def test_without_rank_dropout_no_mask_is_drawn():
    adapter = make({"a": Target(nn.Linear(12, 10))}, rank=4)
    with adapter.rank_dropout(0, 0):
        assert adapter.branches["a"].mask is None


def masked_weights(adapter: TriLoRA, targets, drawn) -> tuple[dict[str, torch.Tensor], dict[str, list[torch.Tensor]]]:
    """Dense changed weights, with the mask of every direction folded in, and the factors that they come from."""
    weights, leaves = {}, {}
    for stem, branch in adapter.branches.items():
        up, sigma, down = (p.detach().clone().requires_grad_() for p in (branch.up, branch.sigma, branch.down))
        companions = torch.ones(down.shape[0] - len(sigma))
        gain = torch.cat([branch.scale * sigma, companions]) * drawn[stem]
        weights[stem] = up @ torch.diag(gain) @ down
        leaves[stem] = [up, sigma, down]
    return weights, leaves


@pytest.mark.parametrize("recomputed", [False, True])
@pytest.mark.parametrize("companion", [0, 2])
def test_gradients_under_rank_dropout_equal_those_of_dense_masked_weights(recomputed, companion):
    """Linear, fused rows and convolution; checkpointed too, whose second forward must see the same mask."""
    denoiser = ToyDenoiser()
    targets = denoiser.targets()
    adapter = make(targets, rank=4, companion_rank=companion, alpha=2.0, rank_dropout=0.4)
    randomise(adapter)
    drawn = masks(adapter, 3, 5)
    x, noise, cond = torch.randn(2, 4, 4, 4), torch.randn(2, 4, 4, 4), [torch.randn(3, WIDTH) for _ in range(2)]
    times = torch.tensor([0.3, 0.6])
    kept = checkpointed(denoiser.blocks()) if recomputed else nullcontext()
    with adapter.attach(targets), adapter.rank_dropout(3, 5), kept:
        loss = denoiser.predict(x, noise, times, cond)[0].square().sum()
        loss.backward()

    weights, leaves = masked_weights(adapter, targets, drawn)
    changed = {}
    for stem, target in targets.items():
        full = changed.get(id(target.module), (target.module, target.module.weight))[1]
        first, last = target.rows or (0, full.shape[0])
        part = full[first:last] + weights[stem].view_as(full[first:last])
        changed[id(target.module)] = (target.module, torch.cat([full[:first], part, full[last:]]))
    names = {id(module): name for name, module in denoiser.model.named_modules()}
    swapped = {f"{names[key]}.weight": weight for key, (_, weight) in changed.items()}
    t = times.view(-1, 1, 1, 1)
    out = functional_call(denoiser.model, swapped, ((1 - t) * x + t * noise, times, torch.stack(cond)))
    reference = out.square().sum()
    reference.backward()

    assert loss.item() == pytest.approx(reference.item(), rel=1e-5)
    for stem, branch in adapter.branches.items():
        for ours, wanted in zip((branch.up, branch.sigma, branch.down), leaves[stem], strict=True):
            assert torch.allclose(ours.grad, wanted.grad, rtol=1e-3, atol=1e-4 * wanted.grad.abs().max())
        left_out = drawn[stem] == 0
        assert not branch.down.grad[left_out].any() and not branch.up.grad[:, left_out].any()
    assert any((mask == 0).any() for mask in drawn.values())


def test_orthogonality_is_the_mean_over_layers_and_starts_without_up():
    targets = {"a": Target(nn.Linear(9, 8)), "b": Target(nn.Linear(9, 8)), "c": Target(nn.Conv2d(3, 6, 3))}
    adapter = make(targets, rank=3, companion_rank=1)
    start = adapter.orthogonality()
    start.backward()
    assert all(branch.up.grad is None or not branch.up.grad.any() for branch in adapter.branches.values())
    assert all(p.grad is None or p.grad.isfinite().all() for p in adapter.trainable())
    randomise(adapter)
    wanted = 0.0
    for branch in adapter.branches.values():
        for factor in (branch.up.detach().double().T, branch.down.detach().double()):
            rows = factor / factor.norm(dim=1, keepdim=True)
            wanted += (rows @ rows.T - torch.eye(4).double()).square().sum().item() / 3
    assert adapter.orthogonality().item() == pytest.approx(wanted, rel=1e-5)
