"""Which measurements there are, in the order in which they are made."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from sides import Case

MIDDLE = Case()
SWEEPS: dict[str, list[Case]] = {
    "rank": [replace(MIDDLE, rank=rank) for rank in (4, 16, 64, 128)],
    "batch": [replace(MIDDLE, batch=batch) for batch in (1, 4, 16)],
    "resolution": [replace(MIDDLE, side=side) for side in (8, 16, 32)],
    "layers": [replace(MIDDLE, layers=layers) for layers in ("attention", "attention+ff")],
    "pictures": [replace(MIDDLE, pictures=pictures) for pictures in (32, 1000)],
    "recomputed": [replace(MIDDLE, recomputed=on) for on in (False, True)],
}


def cases(tiny: bool) -> Iterator[Case]:
    """Each case once; `tiny` with a model that only shows that all of this runs."""
    seen = dict.fromkeys(case for sweep in SWEEPS.values() for case in sweep)
    yield from (replace(case, model="tiny", side=min(case.side, 16)) if tiny else case for case in seen)
