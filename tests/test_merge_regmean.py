"""RegMean beside its formula in dense float64, on moments held whole and by their eigenvectors, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.adapters import dense, make_layer, relative_error
from trilora_core.__main__ import main
from trilora_core.calibration import Calibration, Facts, write_calibration
from trilora_core.errors import InputError
from trilora_core.fileformat import Adapter, read_adapter, write_adapter
from trilora_core.merge import MergeOptions, merge
from trilora_core.merge_regmean import DAMPING
from trilora_core.moments import LEARNED, PRIOR, Moments, Storage, gatherer

A, B = (f"lora_unet_down_blocks_0_attentions_{index}_proj_in" for index in range(2))
IN, OUT = 20, 12


def moments(seed: int, *, kept: int = IN, rows: int = 200) -> Moments:
    """Of random inputs that lie mostly in a few directions; `kept` below IN holds that many eigenvectors."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(IN, IN, generator=generator) * torch.logspace(0, -1, IN)
    inputs = torch.randn(rows, IN, generator=generator) @ mix
    if kept == IN:
        return of(inputs)
    matrix = inputs.T @ inputs / rows
    values, vectors = torch.linalg.eigh(matrix)
    return Moments(rows, float(matrix.trace()), vectors=vectors[:, -kept:].contiguous(), values=values[-kept:])


def of(inputs: Tensor) -> Moments:
    """The moments of these inputs, held whole."""
    held = gatherer(IN, Storage(), None)
    held.add(inputs)
    return held.moments()


def calibration(seed: int, *, kept: int = IN, architecture: str = "sd15", stems: tuple[str, ...] = (A,)) -> Calibration:
    facts = Facts(architecture, "base", "base", f"data {seed}", 64, "p", "l", 4, 4, 0, LEARNED, PRIOR)
    return Calibration(facts, dict.fromkeys(stems, "x"), {"x": moments(seed, kept=kept)}, {"x": moments(99, kept=kept)})


def adapters(*stems: str) -> list[Adapter]:
    told = {"trilora.architecture": "sd15"}
    return [
        Adapter({stem: make_layer(OUT, IN, rank, seed=rank) for stem in stems}, told | {"modelspec.title": f"t{rank}"})
        for rank in (3, 5)
    ]


def formula(updates: list[Tensor], weights: list[float], own: list[Tensor], prior: Tensor, weight: float) -> Tensor:
    gram = sum(own) + weight * prior
    gram = gram + DAMPING * gram.diagonal().mean() * torch.eye(IN, dtype=torch.float64)
    pulled = sum(w * update @ c for w, update, c in zip(weights, updates, own, strict=True))
    return pulled @ torch.linalg.inv(gram)


@pytest.mark.parametrize("kept", [IN, 6])
@pytest.mark.parametrize("weight", [0.0, 1.0, 5.0])
def test_it_is_its_formula(kept, weight):
    calibrations, weights = [calibration(seed, kept=kept) for seed in (1, 2)], [1.0, -0.5]
    given = adapters(A)
    eye = torch.eye(IN, dtype=torch.float64)
    own = [c.learned["x"].times(eye) for c in calibrations]
    wanted = formula([dense(a.layers[A]) for a in given], weights, own, calibrations[0].prior["x"].times(eye), weight)
    options = MergeOptions(prior_weight=weight)
    found, report = merge(given, weights, method="regmean", options=options, calibrations=calibrations)
    assert relative_error(dense(found.layers[A]), wanted) < 1e-5
    assert found.layers[A].svd.s.shape == (8,), "of low rank by itself"
    assert report.kept_energy == 1.0 and report.remarks() == []


def test_each_adapter_keeps_what_it_does_on_its_own_inputs_better_than_in_the_mean():
    """What RegMean is for: inputs in different directions leave both changes whole."""
    eye = torch.eye(IN)
    halves = [
        torch.diag(torch.cat([torch.ones(10), torch.zeros(10)])),
        torch.diag(torch.cat([torch.zeros(10), torch.ones(10)])),
    ]
    calibrations = [calibration(0), calibration(0)]
    for one, half in zip(calibrations, halves, strict=True):
        one.learned["x"] = of(half)
        one.prior["x"] = of(eye)
    given = adapters(A)
    found, _ = merge(
        given, [1.0, 1.0], method="regmean", options=MergeOptions(prior_weight=0.0), calibrations=calibrations
    )
    for adapter, half in zip(given, halves, strict=True):
        assert relative_error(dense(found.layers[A]) @ half.double(), dense(adapter.layers[A]) @ half.double()) < 2e-2


def test_a_larger_prior_weight_changes_less_on_other_inputs():
    calibrations, given, prior = [calibration(1), calibration(2)], adapters(A), moments(99)
    drift = []
    for weight in (0.0, 1.0, 10.0):
        options = MergeOptions(prior_weight=weight)
        found, _ = merge(given, [1.0, 1.0], method="regmean", options=options, calibrations=calibrations)
        change = dense(found.layers[A])
        drift.append(float((change * prior.times(change)).sum()))
    assert drift[0] > drift[1] > drift[2]


def test_layers_without_moments_are_summed_and_told():
    given = adapters(A, B)
    found, report = merge(given, [1.0, 1.0], method="regmean", calibrations=[calibration(1), calibration(2)])
    assert relative_error(dense(found.layers[B]), dense(given[0].layers[B]) + dense(given[1].layers[B])) < 1e-5
    assert report.remarks() == ["1 layers are not in every calibration, so they were summed"]


def test_moments_of_one_direction_in_half_precision_are_solved():
    """Rounding makes some eigenvalues negative by more than is added to the diagonal."""
    line = torch.randn(1, IN, generator=torch.Generator().manual_seed(3))
    line[0, 0] = 60.0
    calibrations = [calibration(1), calibration(2)]
    for found in calibrations:
        found.learned["x"] = of(line)
        found.prior["x"] = of(line)
    found, _ = merge(adapters(A), [1.0, 1.0], method="regmean", calibrations=calibrations)
    size = max(dense(adapter.layers[A]).norm() for adapter in adapters(A))
    assert dense(found.layers[A]).isfinite().all() and dense(found.layers[A]).norm() < 2 * size


def test_calibrations_in_the_wrong_order_are_noticed():
    one, two = adapters(A)
    given = [Adapter(a.layers, a.metadata | {"trilora.data_hash": f"data {n}"}) for n, a in ((1, one), (2, two))]
    right, wrong = ([calibration(n) for n in order] for order in ((1, 2), (2, 1)))
    assert merge(given, [1.0, 1.0], method="regmean", calibrations=right)[1].remarks() == []
    remarks = merge(given, [1.0, 1.0], method="regmean", calibrations=wrong)[1].remarks()
    assert len(remarks) == 2 and "t3 was trained on other pictures than its calibration" in remarks[0]
    other = [Adapter(a.layers, a.metadata | {"trilora.base_fingerprint": "another"}) for a in given]
    assert (
        "t3 was trained on another base model"
        in merge(other, [1.0, 1.0], method="regmean", calibrations=right)[1].remarks()[0]
    )


def test_factors_of_one_input_are_found_once(monkeypatch):
    calls = []
    real = torch.linalg.cholesky_ex
    monkeypatch.setattr(torch.linalg, "cholesky_ex", lambda gram: calls.append(1) or real(gram))
    merge(adapters(A, B), [1.0, 1.0], method="regmean", calibrations=[calibration(n, stems=(A, B)) for n in (1, 2)])
    assert len(calls) == 1


@pytest.mark.parametrize(
    ("calibrations", "method", "words"),
    [
        ([calibration(1)], "regmean", "for each of the 2 adapters, and 1 were given"),
        ([calibration(1), calibration(2)], "sum", "sum uses no calibration; leave it out, or take regmean"),
        (
            [calibration(1), calibration(2, architecture="sdxl")],
            "regmean",
            "the calibration of t5 is for sdxl, the adapters are for sd15",
        ),
    ],
)
def test_calibrations_that_do_not_fit(calibrations, method, words):
    with pytest.raises(InputError) as caught:
        merge(adapters(A), [1.0, 1.0], method=method, calibrations=calibrations)
    assert words in str(caught.value)


def test_a_calibration_of_another_width_is_named():
    wide = [Adapter({A: make_layer(OUT, IN + 1, 3, seed=seed)}, {}) for seed in range(2)]
    with pytest.raises(InputError, match=f"layer {A} reads 21 inputs, its calibration 20"):
        merge(wide, [1.0, 1.0], method="regmean", calibrations=[calibration(1), calibration(2)])


def test_the_command_line_finds_calibrations_beside_the_files(tmp_path: Path, capsys):
    files = [tmp_path / "a.safetensors", tmp_path / "b.safetensors"]
    for path, adapter, seed in zip(files, adapters(A), (1, 2), strict=True):
        write_adapter(path, adapter, dtype=torch.float32)
        write_calibration(path.with_name(f"{path.stem}.calibration.safetensors"), calibration(seed))
    out = tmp_path / "out.safetensors"
    argv = ["merge", *map(str, files), "--method", "regmean", "--prior-weight", "2", "--dtype", "fp32"]
    assert main([*argv, "--output", str(out)]) == 0
    options = MergeOptions(prior_weight=2.0)
    found, _ = merge(
        adapters(A), [1.0, 1.0], method="regmean", options=options, calibrations=[calibration(1), calibration(2)]
    )
    assert relative_error(dense(read_adapter(out).layers[A]), dense(found.layers[A])) < 1e-5
    named = [str(tmp_path / f"{name}.calibration.safetensors") for name in "ba"]
    assert main([*argv, "--output", str(out), "--calibrations", *named]) == 0
    assert relative_error(dense(read_adapter(out).layers[A]), dense(found.layers[A])) > 1e-3, "the order counts"
    assert "regmean: 1 layers" in capsys.readouterr().out
