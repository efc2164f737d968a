"""Which measurements there are, in the order in which they are made."""

from __future__ import annotations

from dataclasses import replace

from sides import Case


def sweeps(tiny: bool) -> dict[str, list[Case]]:
    """Cases by what differs among them; `tiny` with a model that only shows that all of this runs."""
    middle = Case("tiny", side=8) if tiny else Case()
    return {
        "rank": [replace(middle, rank=rank) for rank in (4, 16, 64, 128)],
        "batch": [replace(middle, batch=batch) for batch in (1, 4, 16)],
        "resolution": [replace(middle, side=middle.side * times // 2) for times in (1, 2, 4)],
        "layers": [replace(middle, layers=layers) for layers in ("attention", "attention+ff")],
        "pictures": [replace(middle, pictures=pictures) for pictures in (32, 1000)],
        "recomputed": [replace(middle, recomputed=on) for on in (False, True)],
    }


def cases(tiny: bool) -> list[Case]:
    """Each case once, the quick ones first."""
    found = dict.fromkeys(case for sweep in sweeps(tiny).values() for case in sweep)
    return sorted(found, key=lambda case: case.batch * case.side**2)
