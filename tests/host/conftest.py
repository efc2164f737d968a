"""Fixtures of the host tier; importable helpers are in discovery, in_process, models and server."""

from __future__ import annotations

from pathlib import Path

import pytest

from .discovery import HOW_TO_ENABLE, Host, find_hosts

_HOSTS = find_hosts()
_HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark this folder's tests, so that `-m "not host"` leaves them out."""
    for item in items:
        if _HERE in item.path.parents:
            item.add_marker(pytest.mark.host)


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


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say loudly that the host tier did not run, and how to make it run."""
    if not _HOSTS:
        terminalreporter.write_sep("!", "HOST TIER SKIPPED", red=True, bold=True)
        terminalreporter.write_line(HOW_TO_ENABLE)
