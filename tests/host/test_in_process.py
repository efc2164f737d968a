"""The in-process helper keeps its promises."""

from __future__ import annotations

from pathlib import Path

import pytest

from .discovery import PACK, Host
from .in_process import run_in_host


def test_boot(host: Host) -> None:
    answer = run_in_host(host, "boot_check", {"echo": [1, "two"], "pack_folder": str(PACK)})
    assert answer["echo"] == [1, "two"]
    assert answer["host_nodes"] and answer["entry"]
    assert answer["device"] == "cpu" and answer["threads"] == 1
    assert answer["pack_on_path"] == []
    assert Path(answer["input"]) == Path(answer["base_directory"]) / "input"


def test_failure_shows_the_output(newest_host: Host) -> None:
    with pytest.raises(AssertionError, match="KeyError: 'echo'"):
        run_in_host(newest_host, "boot_check", {"pack_folder": str(PACK)})
