"""Fuzzing of the readers guided by the branches that an input reaches (libFuzzer through atheris).

    python -m tests.hostile.guided --seconds 120

What the fuzzer turns out is text and tensors: the frame of a file (length of the header, order) is put around it, so
that inputs get past the container into the code that reads names, shapes, numbers and metadata.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path

import atheris
import torch

with atheris.instrument_imports(include=["trilora_core"]):
    from .guard import outcome
    from .readers import Reader, readers

from .mutants import joined

FRAMED = ("adapter", "calibration")
_PARTING = b"\n\n"  # between header and tensors of what the fuzzer holds; no header of ours has one


def bare(name: str, data: bytes) -> bytes:
    """A good file as the fuzzer holds it."""
    if name not in FRAMED:
        return data
    length = int.from_bytes(data[:8], "little")
    return data[8 : 8 + length] + _PARTING + data[8 + length :]


def framed(name: str, data: bytes) -> bytes:
    """The file that an input stands for."""
    if name not in FRAMED:
        return data
    header, _, body = data.partition(_PARTING)
    return joined(header.decode("utf-8", "replace"), body)


def main() -> None:
    """Fuzz for some seconds; the process ends with 0, or with the first fault and the input that made it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=int, default=120)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    folder = Path(tempfile.mkdtemp(prefix="trilora-fuzz-"))
    good, work, corpus = folder / "good", folder / "work", folder / "corpus"
    for one in (good, work, corpus):
        one.mkdir()
    found = [one for one in readers(good) if one.name in (*FRAMED, "log", "config", "text")]
    for index, one in enumerate(found):
        for number, data in enumerate(one.seeds):
            (corpus / f"{one.name}-{number}").write_bytes(bytes([index]) + bare(one.name, data))

    def fuzz(data: bytes) -> None:
        if data:
            _read(found[data[0] % len(found)], data[1:], work)

    options = [f"-max_total_time={arguments.seconds}", f"-seed={arguments.seed}", "-max_len=20000", "-timeout=60"]
    os.chdir(work)  # where the input of a fault is kept
    atheris.Setup([sys.argv[0], *options, "-rss_limit_mb=6000", "-print_final_stats=1", str(corpus)], fuzz)
    atheris.Fuzz()


def _read(reader: Reader, data: bytes, work: Path) -> None:
    path = work / f"fuzzed{reader.suffix}"
    path.write_bytes(framed(reader.name, data))
    outcome(lambda: reader.read(path), inside=work)


if __name__ == "__main__":
    main()
