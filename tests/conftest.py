"""What all tiers share: `trilora_core` without the pack root on sys.path, the ComfyUI to test on, and a word when
there is none."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from .host.discovery import HOW_TO_ENABLE, PACK, Host, find_hosts

if TYPE_CHECKING:
    from .host.server import Server

TIERS = ("host", "browser")
_HOSTS = find_hosts()
_left_out = pytest.StashKey[bool]()


def _load_core() -> None:
    """Import `trilora_core` without the pack root on sys.path, where `nodes/` would shadow a host's nodes.py."""
    folder = PACK / "trilora_core"
    spec = importlib.util.spec_from_file_location(
        "trilora_core", folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["trilora_core"] = module
    spec.loader.exec_module(module)


_load_core()


HOST_SECONDS = 900  # a script in the host serves many tests, and the first of them waits for all of it


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark the tests of tests/host and tests/browser with the name of their folder."""
    here = Path(__file__).parent
    for item in items:
        for tier in TIERS:
            if here / tier in item.path.parents:
                item.add_marker(tier)
                if item.get_closest_marker("timeout") is None:
                    item.add_marker(pytest.mark.timeout(HOST_SECONDS))
                config.stash[_left_out] = not _HOSTS


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Say loudly that tests were left out for want of a ComfyUI, and how to have them run."""
    if config.stash.get(_left_out, False):
        terminalreporter.write_sep("!", "NOT TESTED IN COMFYUI", red=True, bold=True)
        terminalreporter.write_line(HOW_TO_ENABLE)


@pytest.fixture(scope="session", autouse=True)
def _few_threads() -> None:
    """Tiny tensors gain nothing from threads, and one thread makes sums repeat bit by bit."""
    import torch

    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))


@pytest.fixture(scope="session", params=_HOSTS or [None], ids=[host.name for host in _HOSTS] or ["none"])
def host(request: pytest.FixtureRequest) -> Host:
    """Each ComfyUI found, newest first; skips when there is none."""
    if request.param is None:
        pytest.skip(HOW_TO_ENABLE)
    return request.param


@pytest.fixture(scope="session")
def newest_host() -> Host:
    """The newest ComfyUI found; skips when there is none."""
    if not _HOSTS:
        pytest.skip(HOW_TO_ENABLE)
    return _HOSTS[0]


@pytest.fixture(scope="session")
def server(host: Host, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A running server of `host`, shared by all tests: leave no file of a name that another test may expect."""
    from .host.server import run_server

    with run_server(host, tmp_path_factory.mktemp(f"comfyui-{host.name}")) as running:
        yield running
