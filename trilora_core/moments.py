"""Second moments of a layer's input, C = mean of xᵀx over its rows x, gathered in one pass of bounded memory."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from .errors import InputError

__all__ = ["LEARNED", "PRIOR", "Gatherer", "Moments", "Storage", "chunks", "gatherer", "sketch_columns"]

_CHUNK = 1 << 23  # numbers of an input that are converted at once: 32 MiB in float32
_ROUNDING = 1e-6  # of the norm of a sketch: what float32 sums over many rows lose, with room


@dataclass(frozen=True)
class Storage:
    """How the moments of an input of width n are held.

    Up to `whole` columns as a matrix: gathered in float32 (4 n² bytes), kept as the half above its diagonal in float16
    (n² bytes). Above it by `kept` eigenvectors in float32, found from a sketch of kept + spare columns, 4 n bytes each.
    """

    whole: int = 3072
    kept: int = 256
    spare: int = 64  # a sketch wider than what is kept finds it better (Halko et al. 2011)

    def sketched(self, width: int) -> bool:
        """Whether inputs of this width are held by eigenvectors; a sketch may not be wider than they."""
        return width > max(self.whole, self.kept + self.spare)

    def gathered_bytes(self, width: int) -> int:
        """Memory of one input while it is gathered, on the model's device."""
        return 4 * width * (self.kept + self.spare if self.sketched(width) else width)

    def kept_bytes(self, width: int) -> int:
        """Memory and file size of the moments of one input."""
        return 4 * (width + 1) * self.kept if self.sketched(width) else width * (width + 1)


# Directions are lost where the prior is not held whole, and hardly where the training set is not
# (benchmarks/README.md), so that the latter is held in less.
LEARNED = Storage(whole=768)
PRIOR = Storage()


@dataclass(frozen=True, eq=False)
class Moments:
    """C (n, n), whole or by its largest eigenvalues `values` (k,) and their `vectors` (n, k).

    `packed` is the upper half of the whole matrix in units of trace / n, (n·(n + 1)/2,) float16. `trace` is that of all
    of C, also where only k eigenvalues are held; `count` is the number of rows seen.
    """

    count: int
    trace: float
    packed: Tensor | None = None
    vectors: Tensor | None = None
    values: Tensor | None = None

    @property
    def width(self) -> int:
        """How many columns the input has."""
        if self.vectors is not None:
            return self.vectors.shape[0]
        assert self.packed is not None
        return math.isqrt(2 * self.packed.numel())

    @property
    def matrix(self) -> Tensor | None:
        """The whole C, (n, n) float32, made anew at each call; None where only eigenvectors are held."""
        if self.packed is None:
            return None
        n = self.width
        found = self.packed.new_zeros(n, n, dtype=torch.float32)
        rows, columns = torch.triu_indices(n, n, device=self.packed.device)
        found[rows, columns] = self.packed.float() * (self.trace / n)
        return found + found.triu(1).T

    @property
    def rest(self) -> float:
        """Mean of the eigenvalues that are not held, 0 where all are: C is V·diag(values)·Vᵀ + rest·(I - V·Vᵀ)."""
        if self.values is None or len(self.values) == self.width:
            return 0.0
        return max(0.0, self.trace - float(self.values.double().sum())) / (self.width - len(self.values))

    def times(self, rows: Tensor) -> Tensor:
        """rows · C, (…, n) -> (…, n), with gradients where rows have them; on the device of the rows."""
        matrix = self.matrix
        if matrix is not None:
            return rows @ matrix.to(rows)
        assert self.vectors is not None and self.values is not None
        vectors, rest = self.vectors.to(rows), self.rest
        return ((rows @ vectors) * (self.values.to(rows) - rest)) @ vectors.T + rest * rows

    def tensors(self) -> dict[str, Tensor]:
        """What is held, by name."""
        held = {"packed": self.packed, "vectors": self.vectors, "values": self.values}
        return {name: tensor for name, tensor in held.items() if tensor is not None}

    def to(self, device: torch.device | str) -> Moments:
        """The same on another device."""
        return Moments(self.count, self.trace, **{name: part.to(device) for name, part in self.tensors().items()})


class Gatherer(Protocol):
    """Sums up one input."""

    def add(self, rows: Tensor) -> None:
        """Take rows (T, n) in float32 into account."""
        ...

    def moments(self) -> Moments:
        """The moments of all rows so far, on the CPU; InputError where one was not finite or none came."""
        ...


def gatherer(width: int, storage: Storage, test: Tensor | None) -> Gatherer:
    """The way that `storage` has for this width; `test` are the orthonormal columns of a sketch, where it makes one."""
    return _Whole(width) if test is None else _Sketched(width, storage, test)


def sketch_columns(width: int, storage: Storage, seed: int) -> Tensor | None:
    """Orthonormal random columns (n, kept + spare), one set for each width; None where no sketch is made."""
    if not storage.sketched(width):
        return None
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(width, storage.kept + storage.spare, generator=generator, dtype=torch.float64)
    columns: Tensor = torch.linalg.qr(drawn).Q.float()
    return columns


def chunks(rows: Tensor) -> list[Tensor]:
    """(T, n) in parts of bounded size."""
    return list(rows.split(max(1, _CHUNK // max(1, rows.shape[1]))))


class _Whole:
    def __init__(self, width: int) -> None:
        self._sum = torch.zeros(width, width)
        self._count = 0

    def add(self, rows: Tensor) -> None:
        self._sum = self._sum.to(rows.device)
        self._sum.addmm_(rows.T, rows)
        self._count += len(rows)

    def moments(self) -> Moments:
        _check_finite(self._sum, self._count)
        mean = self._sum.cpu() / self._count
        trace = float(mean.diagonal().double().sum())
        rows, columns = torch.triu_indices(*mean.shape)
        return Moments(self._count, trace, (mean[rows, columns] * (len(mean) / trace if trace else 0.0)).half())


class _Sketched:
    """One pass: Y = C · test, from which C is found again (Tropp et al. 2017, algorithm 3)."""

    def __init__(self, width: int, storage: Storage, test: Tensor) -> None:
        self._kept, self._test = storage.kept, test
        self._sum = torch.zeros(width, test.shape[1])
        self._trace = torch.zeros(())
        self._count = 0

    def add(self, rows: Tensor) -> None:
        self._sum, self._trace = self._sum.to(rows.device), self._trace.to(rows.device)
        self._sum.addmm_(rows.T, rows @ self._test.to(rows.device))
        self._trace += rows.square().sum()
        self._count += len(rows)

    def moments(self) -> Moments:
        _check_finite(self._sum, self._count)
        trace = float(self._trace) / self._count
        vectors, values = _nystrom(self._sum.cpu().double() / self._count, self._test.cpu().double(), self._kept)
        # the rounding of float32 sums may not make the parts larger than the whole
        values = values * min(1.0, trace / max(float(values.sum()), 1e-300))
        return Moments(self._count, trace, vectors=vectors.float().contiguous(), values=values.float())


def _nystrom(sketch: Tensor, test: Tensor, kept: int) -> tuple[Tensor, Tensor]:
    """The best approximation of rank `kept` to C from its sketch C · test (n, l): vectors (n, kept), values (kept,)."""
    shift = _ROUNDING * float(torch.linalg.matrix_norm(sketch))
    if not shift:
        return test[:, :kept], sketch.new_zeros(min(kept, test.shape[1]))
    factor, failed = None, True
    while failed:
        shifted = sketch + shift * test
        core = test.T @ shifted
        factor, info = torch.linalg.cholesky_ex((core + core.T) / 2)
        failed = bool(info)
        shift = shift * 10 if failed else shift
    assert factor is not None
    half = torch.linalg.solve_triangular(factor.mT, shifted, upper=True, left=False)
    # the shift keeps all eigenvalues clear of rounding, so that the small product is exact enough
    squares, turn = torch.linalg.eigh(half.T @ half)
    squares, turn = squares.flip(0)[:kept].clamp_min(shift * _ROUNDING), turn.flip(1)[:, :kept]
    return half @ (turn / squares.sqrt()), (squares - shift).clamp_min(0.0)


def _check_finite(total: Tensor, count: int) -> None:
    if not count:
        raise InputError("the model never calls it; leave it out with layers.exclude")
    if not math.isfinite(float(total.sum())):
        raise InputError("its input is not finite; load the model in bf16 or fp32")
