"""Training beside what other nodes, flags of the host and other loads do to the same model."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest

from .discovery import Host
from .in_process import run_in_host
from .models import sd3_checkpoint


@cache
def measured(host: Host) -> dict[str, Any]:
    """What neighbours.py found, from one process for each host."""
    return run_in_host(host, "neighbours", {"checkpoint": str(sd3_checkpoint())})


@pytest.fixture
def found(host: Host) -> dict[str, Any]:
    return measured(host)


@pytest.mark.parametrize("kind", ["sd15", "sd3"])
def test_attention_that_is_made_for_sampling_cuts_no_gradient_off(found: dict[str, Any], kind: str) -> None:
    """SageAttention and its like, put in by a node or by a flag of the host."""
    seen = found["attention"][kind]
    assert seen["plain"] == seen["by_node"] == seen["by_flag"] > 10, seen


def test_weights_that_a_preview_moved_are_trained_on_again(found: dict[str, Any]) -> None:
    assert found["moved"] == {"same": True, "same_bits": True}


def test_a_model_without_room_is_said_in_a_sentence(found: dict[str, Any]) -> None:
    seen = found["no_room"]
    assert seen["model"].startswith("InputError: the model does not fit into the memory of cpu as a whole")
    assert seen["start"].startswith("InputError: out of memory on cpu before the first step")
    assert seen["untouched"] == "True"


def test_the_twin_of_a_paged_model_has_one_number_format(found: dict[str, Any]) -> None:
    """The loader of 0.33.0 leaves linear weights in the format of the file, with which no forward goes through."""
    seen = found["paged"]
    if seen is None:
        pytest.skip("this host pages no weights")
    assert seen["left"] == ["torch.float16", "torch.float32"], "the host mends it itself by now"
    assert seen["given"] == ["torch.float16"] and seen["learning"] > 10, seen


def test_a_checkpoint_without_a_vae_is_said_in_a_sentence(found: dict[str, Any]) -> None:
    assert found["no_vae"].startswith("InputError: the vae input is empty")
