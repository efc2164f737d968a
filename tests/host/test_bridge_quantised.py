"""Training on bases in fp8 and quantised formats, and which base is which."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest

from .discovery import Host
from .in_process import run_in_host

SINCE = {
    "scaled_fp8": (0, 3),
    "float8_e4m3fn": (0, 14),
    "nvfp4": (0, 14),
    "mxfp8": (0, 33),
    "int8_tensorwise": (0, 33),
}


@cache
def measured(host: Host) -> dict[str, Any]:
    """What bridge_training_quantised.py found, from one process for each host."""
    return run_in_host(host, "bridge_training_quantised")


@pytest.fixture(params=list(SINCE))
def answer(request: pytest.FixtureRequest, host: Host) -> dict[str, Any]:
    if host.version < SINCE[request.param]:
        pytest.skip(f"hosts know {request.param} from {'.'.join(map(str, SINCE[request.param]))} on")
    return measured(host)[request.param]


def test_the_base_is_loaded_in_few_bits(answer: dict[str, Any]) -> None:
    assert answer["quantised"] >= 28 and 0.005 < answer["rounded"] < 0.12


def test_gradients_are_those_on_what_the_weights_stand_for(answer: dict[str, Any]) -> None:
    """Also where the hardware could multiply the rounded numbers themselves, which the script asks the layers to do."""
    assert answer["finite"] and answer["learning"] == 1.0
    assert answer["error"] < 1e-5


def test_sigma_starts_from_what_the_weights_stand_for(answer: dict[str, Any]) -> None:
    assert answer["sigma"] < 1e-6


def test_the_base_stays_as_it_is(answer: dict[str, Any]) -> None:
    assert answer["same"]


def test_a_rounded_base_is_another_base(answer: dict[str, Any]) -> None:
    assert answer["fingerprints"] == 2


@cache
def fingerprints(host: Host) -> dict[str, Any]:
    return run_in_host(host, "base_fingerprint")


@pytest.mark.parametrize("part", ["attention", "feed-forward", "convolution", "norm", "time"])
def test_bases_that_differ_anywhere_are_told_apart(host: Host, part: str) -> None:
    found = fingerprints(host)
    assert found["again"] == found["plain"] != found[part]


def test_a_fingerprint_costs_little(host: Host) -> None:
    """Under 0.3 s for the 686 weights of SD 1.5, as there are in this model ten times over."""
    found = fingerprints(host)
    assert found["weights"] >= 100 and found["seconds"] * 686 / found["weights"] < 0.3
