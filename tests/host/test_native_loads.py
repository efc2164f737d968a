"""What training on each kind of model would save, loads whole in the host's own LoRA loader."""

from __future__ import annotations

from .discovery import Host
from .in_process import run_in_host

FP16 = 1e-3
FLUX_SINCE = (0, 14)  # older hosts take every Flux for one of width 3072
WEIGHTS = {"sd3": 9, "flux": 12}  # q, k and v of SD3 are one weight with three stems


def test_sd3_and_flux_files_load_in_the_native_loader(host: Host) -> None:
    kinds = ["sd3"] + ["flux"] * (host.version >= FLUX_SINCE)
    answer = run_in_host(host, "native_loads", {"kinds": kinds})
    assert list(answer) == kinds
    for kind, found in answer.items():
        assert found["weights"] == {"ours": WEIGHTS[kind], "native": WEIGHTS[kind]}, kind
        assert found["between"] < 1e-5 and found["to_exact"] < FP16, (kind, found)
