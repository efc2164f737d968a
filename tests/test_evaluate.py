"""Distances, diversity and artefacts against their definitions, in float64."""

from __future__ import annotations

import math

import numpy
import pytest
import torch
from PIL import Image, ImageDraw

from trilora_core.errors import InputError
from trilora_core.evaluate import (
    artefacts,
    clipped_share,
    diversity,
    frechet_distance,
    jackknife,
    kernel_distance,
    spot_mask,
)
from trilora_core.evaluate_nets import fid
from trilora_core.evaluate_sets import tensor_of


def features(count: int, width: int, seed: int, scale: float = 1.0, shift: float = 0.0) -> torch.Tensor:
    draw = torch.Generator().manual_seed(seed)
    mixed = torch.randn(count, width, generator=draw) @ torch.randn(width, width, generator=draw)
    return mixed * scale + shift


def root(matrix: torch.Tensor) -> torch.Tensor:
    values, vectors = torch.linalg.eigh(matrix)
    return vectors @ torch.diag(values.clamp(min=0).sqrt()) @ vectors.T


def by_definition(x: torch.Tensor, y: torch.Tensor) -> float:
    x, y = x.double(), y.double()
    a, b = torch.cov(x.T), torch.cov(y.T)
    half = root(a)
    return float((x.mean(0) - y.mean(0)).square().sum() + a.trace() + b.trace() - 2 * root(half @ b @ half).trace())


@pytest.mark.parametrize(("first", "second"), [(200, 150), (12, 9), (200, 9)])  # 16 features: full and too few
def test_frechet_distance_and_fid_are_the_definition(first: int, second: int) -> None:
    x, y = features(first, 16, 1), features(second, 16, 2, 1.3, 0.5)
    wanted = by_definition(x, y)
    assert frechet_distance(x, y) == pytest.approx(wanted, rel=1e-7)
    assert fid(x, y) == pytest.approx(wanted, rel=1e-6)
    assert frechet_distance(x, x) == pytest.approx(0, abs=1e-9 * wanted)


def test_kernel_distance_is_the_definition_and_that_of_torchmetrics() -> None:
    from torchmetrics.image.kid import poly_mmd

    x, y = features(9, 5, 1).double(), features(7, 5, 2, 1.3, 0.5).double()

    def kernel(a: torch.Tensor, b: torch.Tensor) -> float:
        return (float(a @ b) / 5 + 1) ** 3

    def mean(pairs: list[float]) -> float:
        return sum(pairs) / len(pairs)

    wanted = (
        mean([kernel(a, b) for i, a in enumerate(x) for j, b in enumerate(x) if i != j])
        + mean([kernel(a, b) for i, a in enumerate(y) for j, b in enumerate(y) if i != j])
        - 2 * mean([kernel(a, b) for a in x for b in y])
    )
    assert kernel_distance(x, y) == pytest.approx(wanted, rel=1e-12)
    assert kernel_distance(x, y[:7]) != kernel_distance(x[:7], y)
    assert kernel_distance(x[:7], y) == pytest.approx(float(poly_mmd(x[:7], y)), rel=1e-9)


def test_kernel_distance_has_no_bias_where_frechet_has() -> None:
    """Two draws of one distribution are at 0 on average for KID at any size, and far from it for few in FID."""
    pairs = [(torch.randn(10, 8), torch.randn(10, 8)) for _ in range(300) if torch.manual_seed(_)]
    values = torch.tensor([kernel_distance(x, y) for x, y in pairs])
    assert abs(float(values.mean())) < 3 * float(values.std()) / math.sqrt(300)
    assert all(frechet_distance(x, y) > 1 for x, y in pairs[:20])
    errors = torch.tensor([jackknife(kernel_distance, [x], [y]) for x, y in pairs[:60]])
    assert float(errors.mean()) == pytest.approx(float(values.std()), rel=0.35)


def test_jackknife_of_a_mean_is_its_standard_error() -> None:
    x, y = torch.randn(15, 3).double(), torch.randn(11, 3).double()
    error = jackknife(lambda a: float(a[:, 0].mean()), [x])
    assert error == pytest.approx(float(x[:, 0].std()) / math.sqrt(15))
    both = jackknife(lambda a, b: float(a[:, 0].mean() - b[:, 0].mean()), [x], [y])
    assert both == pytest.approx(math.hypot(error, float(y[:, 0].std()) / math.sqrt(11)))
    together = jackknife(lambda a, b: float(a[:, 0].mean() - b[:, 0].mean()), [x, x + 1])
    assert together == pytest.approx(0, abs=1e-12), "what belongs together is left out together"
    assert jackknife(lambda a: 0.0, [x[:2]]) is None


def test_diversity_is_the_mean_over_pairs() -> None:
    x = features(6, 4, 3).double()
    unit = x / x.norm(dim=1, keepdim=True)
    pairs = [1 - float(unit[i] @ unit[j]) for i in range(6) for j in range(i)]
    found = diversity(x, ["a", "a", "b", "c", "c", "c"])
    assert found.overall == pytest.approx(sum(pairs) / len(pairs))
    inside = [[(0, 1)], [(3, 4), (3, 5), (4, 5)]]
    means = [sum(1 - float(unit[i] @ unit[j]) for i, j in some) / len(some) for some in inside]
    assert found.within == pytest.approx(sum(means) / 2)
    assert diversity(x[:1].repeat(4, 1)).overall == pytest.approx(0, abs=1e-12)
    assert diversity(x, range(6)).within is None


# --- artefacts ----------------------------------------------------------------

SIDE = 192


def scene(draw: numpy.random.Generator) -> numpy.ndarray:
    """Clouds, areas, strokes in white, and sometimes a white ground: all that is no spot."""
    there = numpy.hypot(*numpy.meshgrid(*[numpy.fft.fftfreq(SIDE)] * 2)) + (1 / SIDE)
    shared = draw.normal(size=(SIDE, SIDE))  # by all channels, as in most pictures
    noise = [0.7 * shared + 0.5 * draw.normal(size=(SIDE, SIDE)) for _ in range(3)]
    grey = [numpy.fft.ifft2(numpy.fft.fft2(one) / there**1.2).real for one in noise]
    clouds = numpy.stack([draw.uniform(60, 190) + g / g.std() * draw.uniform(15, 50) for g in grey], -1)
    picture = Image.fromarray(numpy.clip(clouds, 0, 255).astype(numpy.uint8)).resize((2 * SIDE, 2 * SIDE))
    pen = ImageDraw.Draw(picture)
    for _ in range(draw.integers(2, 9)):
        x, y, wide, high = draw.uniform(0, 2 * SIDE, 4)
        box = [x, y, x + wide / 2 + 0.1 * SIDE, y + high / 2 + 0.1 * SIDE]
        colour = tuple(int(value) for value in draw.integers(0, 256, 3))
        kind = draw.integers(0, 4)
        if kind == 0:
            pen.ellipse(box, fill=colour)
        elif kind == 1:
            pen.rectangle(box, fill=colour)
        elif kind == 2:
            pen.line([x, y, x + wide - SIDE, y + high - SIDE], fill="white", width=int(draw.integers(2, 9)))
        else:
            pen.polygon([tuple(draw.uniform(0, 2 * SIDE, 2)) for _ in range(3)], fill=colour)
    if draw.random() < 0.3:
        pen.ellipse([-SIDE, -SIDE, 3 * SIDE, 3 * SIDE], outline="white", width=int(SIDE * 0.9))
    return numpy.array(picture.resize((SIDE, SIDE), Image.Resampling.LANCZOS))


def with_spots(draw: numpy.random.Generator, picture: numpy.ndarray, count: int) -> tuple[numpy.ndarray, list]:
    """Soft discs, white or of one full colour, where the picture is not bright already."""
    down, right = numpy.mgrid[:SIDE, :SIDE]
    result, places = picture.astype(float), []
    while len(places) < count:
        radius = draw.uniform(0.009, 0.02) * SIDE
        y, x = draw.uniform(3 * radius, SIDE - 3 * radius, 2)
        near = numpy.hypot(down - y, right - x)
        if result[near < 2 * radius].max() > 200 or any(math.hypot(y - v, x - u) < 0.1 * SIDE for v, u in places):
            continue
        disc = 1 / (1 + numpy.exp(numpy.clip(3 * (near - radius), -50, 50)))[..., None]
        colour = numpy.array([255, 255, 255] if draw.random() < 0.6 else draw.permutation([255, 0, 0]))
        result = result * (1 - disc) + disc * colour
        places.append((y, x))
    return numpy.clip(result, 0, 255).astype(numpy.uint8), places


def test_spots_are_found_and_little_else() -> None:
    draw = numpy.random.default_rng(0)
    found, wanted, alarms, count = 0, 0, 0, 22
    for _ in range(count):
        plain = scene(draw)
        alarms += artefacts(tensor_of(Image.fromarray(plain))).spots > 0
        if plain.mean() > 170:
            continue
        marked, places = with_spots(draw, plain, 3)
        mask = spot_mask(tensor_of(Image.fromarray(marked)))
        found += sum(bool(mask[int(y) - 1 : int(y) + 2, int(x) - 1 : int(x) + 2].any()) for y, x in places)
        wanted += len(places)
    assert wanted >= 45
    print(f"{found} of {wanted} spots found, {alarms} false alarms in {count} pictures")
    assert found / wanted >= 0.9, f"{found} of {wanted}"
    assert alarms / count <= 0.05, f"{alarms} of {count} pictures without a spot"


def test_what_is_counted() -> None:
    picture = Image.new("RGB", (128, 128), (90, 60, 40))
    pen = ImageDraw.Draw(picture)
    for x, y in ((20, 20), (60, 90), (100, 40)):
        pen.ellipse([x, y, x + 4, y + 4], fill="white")
    found = artefacts(tensor_of(picture))
    assert found.spots == 3
    assert found.spot_area == pytest.approx(found.clipped) and 0.002 < found.clipped < 0.006
    pen.rectangle([0, 110, 127, 127], fill="white")  # an area at the border is none
    pen.line([0, 0, 127, 127], fill="white")
    assert artefacts(tensor_of(picture)).spots <= 3
    half = torch.zeros(3, 8, 8, dtype=torch.uint8) + 100
    half[1, :, 4:] = 255
    assert clipped_share(half) == 0.5


def test_what_cannot_be_measured_is_refused() -> None:
    with pytest.raises(InputError, match="at least 2 pictures"):
        frechet_distance(torch.zeros(1, 3), torch.zeros(2, 3))
    with pytest.raises(InputError, match="the same network"):
        kernel_distance(torch.zeros(2, 3), torch.zeros(2, 4))
    with pytest.raises(InputError, match="not finite"):
        diversity(torch.full((2, 3), math.nan))
    with pytest.raises(InputError, match="uint8"):
        artefacts(torch.zeros(3, 4, 4))
