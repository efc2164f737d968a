"""The data nodes one by one, without a server: widgets, bad input, where things are kept, what is noticed."""

from __future__ import annotations

from typing import Any

import pytest

from .discovery import Host
from .in_process import run_in_host


@pytest.fixture(scope="module")
def found(host: Host) -> dict[str, Any]:
    """Everything from one start of the host."""
    return run_in_host(host, "data_nodes")


def test_options_reach_the_config(found: dict[str, Any]) -> None:
    options = found["options"]
    assert options["defaults"] and options["changed"]
    assert options["unlike"] == [], "a widget at its default shows nothing"


def test_mask_folders_stay_in_their_root(found: dict[str, Any]) -> None:
    options = found["options"]
    assert options["choices"] == ["none", "alpha", "masks"]  # a folder that is called alpha cannot be told from it
    assert options["valid"] == [True] * 4
    assert all("there is no folder" in said for said in options["refused"])
    assert options["raised"] == [f"InputError: {said}" for said in options["refused"]]


def test_latents_in_lists_and_batches(found: dict[str, Any]) -> None:
    latents = found["latents"]
    assert latents["sizes"] == [[3, 2]] * 4 + [[3, 1]]
    assert latents["mask"] == [1.0, 1.0, 1.0, 1.0, 0.5, 0.0, 0.0, 0.0]
    assert latents["normal"] and latents["empty"] == [True, True] and latents["resolution"] == 64


def test_latents_that_cannot_be_used(found: dict[str, Any]) -> None:
    said = found["latents"]["said"]
    assert all(text.startswith("InputError: ") for text in said.values())
    assert "2 conditionings came with 3 pictures in 3 latents" in said["number"]
    assert "conditioning 1 has 2 entries for 1 picture;" in said["several"]
    assert "latent 1 has samples of shape (1, 16, 3, 8, 8)" in said["video"]
    assert "latent 1 has samples of shape (0, 4, 8, 8)" in said["empty"]
    assert "wanted finite numbers" in said["nan"]
    assert "the mask of latent 1 is all black" in said["black"]
    assert "latent 1 has 2 masks for 3 pictures" in said["masks"]
    assert "sets control, which training cannot follow" in said["control"]


def test_masks_of_pictures_of_the_graph(found: dict[str, Any]) -> None:
    masks = found["masks"]
    assert masks["alpha"] and masks["given"] and masks["white"] == [None, None]
    assert all("connect the masks input, and set masks to none" in text for text in masks["said"].values())


def test_what_is_cached_is_named_by_all_that_it_depends_on(found: dict[str, Any]) -> None:
    encoder = found["encoder"]
    assert encoder["unlike"], "a patched text encoder must encode otherwise, or this shows nothing"
    assert encoder["patched"] == [True, True] and encoder["plain"] and encoder["apart"]
    assert encoder["options"] and encoder["dtype"]
    assert encoder["hooks"].startswith("InputError: this clip carries hooks")
    assert encoder["nan"].startswith("InputError: this VAE makes latents that are not finite")


def test_cache(found: dict[str, Any]) -> None:
    cache = found["cache"]
    assert cache["same"] and cache["there"] and cache["apart"] and cache["memory"] == "MemoryStore"
    assert cache["said"].startswith("InputError: cannot use the cache ")
    assert "set cache to memory; data set nodes have it in TriLoRA Dataset Options" in cache["said"]


def test_prior_needs_its_inputs(found: dict[str, Any]) -> None:
    assert "the clip input is empty" in found["prior"]["no clip"]


def test_a_node_shows_eight_lines_at_most(found: dict[str, Any]) -> None:
    assert found["lines"] == {"counts": [8, 8], "last": "and 24 more: see ComfyUI's log"}


def test_changes_on_the_disk_are_noticed(found: dict[str, Any]) -> None:
    fingerprint = found["fingerprint"]
    unseen = {"nothing", "hidden", "outside"}
    assert {name for name, changed in fingerprint["changed"].items() if not changed} == unseen
    assert fingerprint["seconds"] < 2 and fingerprint["hash"] == 64  # of 10,000 files
