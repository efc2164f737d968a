"""What seeds a run is the same in every process, whatever lies in memory that the host leaves unset."""

from __future__ import annotations

import sys

import pytest

from .discovery import Host
from .in_process import run_in_host
from .models import sd15_clip_checkpoint


@pytest.mark.skipif(sys.platform != "linux", reason="fills fresh memory by way of glibc")
def test_encoder_fingerprint(newest_host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """SD1.5 files hold no text_projection: the host leaves that weight as it finds the memory."""
    fingerprints = set()
    for filling in ("1", "77"):
        monkeypatch.setenv("MALLOC_PERTURB_", filling)
        fingerprints.add(run_in_host(newest_host, "encoder_fingerprint", {"checkpoint": str(sd15_clip_checkpoint())}))
    assert len(fingerprints) == 1
