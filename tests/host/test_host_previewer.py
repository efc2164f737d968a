"""Pictures drawn by the bridge are those of the host's own nodes, in every ComfyUI found."""

from __future__ import annotations

from typing import Any

import pytest

from .discovery import Host
from .in_process import run_in_host
from .models import flux_checkpoint, sd3_checkpoint, sd15_clip_checkpoint, sdxl_checkpoint

FLUX_SINCE = (0, 14)  # older hosts take every Flux for one of full width


@pytest.fixture(scope="module")
def figures(host: Host) -> dict[str, Any]:
    """Everything from one start of the host."""
    checkpoints = {
        "sd15": sd15_clip_checkpoint(),
        "sdxl": sdxl_checkpoint(),
        "sd3": sd3_checkpoint(),
    }
    if host.version >= FLUX_SINCE:
        checkpoints["flux"] = flux_checkpoint()
    return run_in_host(host, "host_previewer", {"checkpoints": {name: str(path) for name, path in checkpoints.items()}})


def test_bit_equal_to_the_hosts_nodes(figures: dict[str, Any]) -> None:
    for found in figures["same"]:
        assert found["equal"] == [True, True]  # out of inference mode, and in it
        assert found["size"] == ["RGB", 64, 96] and found["values"] > 200


@pytest.mark.parametrize(("kind", "channels"), [("sdxl", 4), ("sd3", 16), ("flux", 16)])
def test_other_architectures(host: Host, figures: dict[str, Any], kind: str, channels: int) -> None:
    if kind == "flux" and host.version < FLUX_SINCE:
        pytest.skip("this ComfyUI cannot load a small Flux")
    found = figures["others"][kind]
    assert found["channels"] == channels and found["equal"] == [True, True]
    assert found["size"] == ["RGB", 64, 96] and found["values"] > 200


def test_several_pictures(figures: dict[str, Any]) -> None:
    found = figures["several"]
    assert found["equal"] == [True] * 3 and found["differ"] and found["none"] == []
    assert found["encoded"] == [3, 3]  # "one", "three" and the negative prompt, once each
    assert found["odd"] == [64, 64]


def test_leaves_nothing_behind(figures: dict[str, Any]) -> None:
    assert {name for name, kept in figures["left"].items() if not kept} == set()


def test_during_training(figures: dict[str, Any]) -> None:
    found = figures["training"]
    assert found.pop("plain") == [True, True]
    assert {name for name, kept in found.items() if not kept} == set()


def test_class_pictures(figures: dict[str, Any]) -> None:
    assert figures["prior"] == {"counts": [[0, 3], [3, 0]], "same": True, "key": 12}


def test_interrupt(figures: dict[str, Any]) -> None:
    found = figures["interrupt"]
    assert found["raised"] and found["steps"] <= 3 and found["values"] > 200


def test_bad_input(figures: dict[str, Any]) -> None:
    said = figures["said"]
    assert all(text.startswith("InputError: ") for text in said.values())
    assert "the vae input is empty" in said["no vae"]
    assert "width of the pictures to draw is 8; wanted a whole number from 16 up" in said["width"]
    assert "steps of the pictures to draw is 0" in said["steps"] and "is nan" in said["cfg"]
    assert "has no sampler 'eular'; known: euler, " in said["sampler"]
    assert "has no scheduler 'later'; known: " in said["scheduler"] and "karras" in said["scheduler"]
    assert "2 prompts came with 1 seeds" in said["counts"]
    assert "seed is 18446744073709551615; wanted a whole number from 0 to 18446744073709551614" in said["seed"]
    assert "the picture of seed 6 is not finite" in said["nan"]
