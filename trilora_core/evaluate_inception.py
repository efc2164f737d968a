"""The Inception network that FID is defined with (Szegedy et al. 2016, as trained in 2015), up to its features.

Layers have the names of the weights file that pytorch-fid and torch-fidelity share. Against torchvision's network of
the same name: averages leave the border out, and the last block takes a maximum.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, max_pool2d, relu

__all__ = ["InceptionFID"]

# One convolution: what follows "branch" in its name, channels out, kernel, stride. Padding keeps the size at stride 1.
_Conv = tuple[str, int, tuple[int, int], int]
# One branch: a chain of convolutions; its last entry may be several side by side, whose results are joined.
_ONE = (1, 1)
_THREE = (3, 3)
_ACROSS, _DOWN = (1, 7), (7, 1)


class InceptionFID(nn.Module):
    """Pictures (B, 3, 299, 299) in [-1, 1] -> features (B, 2048)."""

    SIDE = 299

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = _Unit(3, 32, _THREE, 2, False)
        self.Conv2d_2a_3x3 = _Unit(32, 32, _THREE, 1, False)
        self.Conv2d_2b_3x3 = _Unit(32, 64, _THREE, 1, True)
        self.Conv2d_3b_1x1 = _Unit(64, 80, _ONE, 1, False)
        self.Conv2d_4a_3x3 = _Unit(80, 192, _THREE, 1, False)
        self.Mixed_5b, self.Mixed_5c, self.Mixed_5d = _first(192, 32), _first(256, 64), _first(288, 64)
        self.Mixed_6a = _shrink_first(288)
        self.Mixed_6b, self.Mixed_6c = _second(768, 128), _second(768, 160)
        self.Mixed_6d, self.Mixed_6e = _second(768, 160), _second(768, 192)
        self.Mixed_7a = _shrink_second(768)
        self.Mixed_7b, self.Mixed_7c = _third(1280, "mean"), _third(2048, "max")

    def forward(self, x: Tensor) -> Tensor:
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(max_pool2d(x, 3, 2)))
        x = max_pool2d(x, 3, 2)
        for name, block in self.named_children():
            if name.startswith("Mixed"):
                x = block(x)
        return x.mean((2, 3))

    @staticmethod
    def counters() -> list[str]:
        """Names of the tensors that count batches."""
        with torch.device("meta"):
            return [name for name in InceptionFID().state_dict() if name.endswith("num_batches_tracked")]


class _Unit(nn.Module):
    def __init__(self, wide: int, out: int, kernel: tuple[int, int], stride: int, same: bool) -> None:
        super().__init__()
        padding = (kernel[0] // 2, kernel[1] // 2) if same else (0, 0)
        self.conv = nn.Conv2d(wide, out, kernel, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(out, eps=0.001)

    def forward(self, x: Tensor) -> Tensor:
        return relu(self.bn(self.conv(x)))


class _Block(nn.Module):
    """Branches side by side; `forks` names pairs that follow one convolution, `pool` what the last begins with."""

    def __init__(self, wide: int, branches: list[list[_Conv]], pool: str, forks: tuple[str, ...] = ()) -> None:
        super().__init__()
        self._chains = [[f"branch{name}" for name, *_ in chain] for chain in branches]
        self._pool, self._forks = pool, forks
        for chain in branches:
            given = wide
            for name, out, kernel, stride in chain:
                self.add_module(f"branch{name}", _Unit(given, out, kernel, stride, stride == 1))
                # both of a fork take what comes before it
                given = given if name.endswith("a") and name[:-1] in forks else out

    def forward(self, x: Tensor) -> Tensor:
        found = [part for chain in self._chains for part in self._run(chain, x)]
        if self._pool == "shrink":
            found.append(max_pool2d(x, 3, 2))
        return torch.cat(found, 1)

    def _run(self, chain: list[str], x: Tensor) -> list[Tensor]:
        if chain[-1] == "branch_pool":
            mean = self._pool == "mean"
            x = avg_pool2d(x, 3, 1, 1, count_include_pad=False) if mean else max_pool2d(x, 3, 1, 1)
        if any(chain[-1] == f"branch{fork}b" for fork in self._forks):
            *chain, left, right = chain
            for name in chain:
                x = self.get_submodule(name)(x)
            return [self.get_submodule(left)(x), self.get_submodule(right)(x)]
        for name in chain:
            x = self.get_submodule(name)(x)
        return [x]


def _first(wide: int, pooled: int) -> _Block:
    return _Block(
        wide,
        [
            [("1x1", 64, _ONE, 1)],
            [("5x5_1", 48, _ONE, 1), ("5x5_2", 64, (5, 5), 1)],
            [("3x3dbl_1", 64, _ONE, 1), ("3x3dbl_2", 96, _THREE, 1), ("3x3dbl_3", 96, _THREE, 1)],
            [("_pool", pooled, _ONE, 1)],
        ],
        "mean",
    )


def _shrink_first(wide: int) -> _Block:
    return _Block(
        wide,
        [
            [("3x3", 384, _THREE, 2)],
            [("3x3dbl_1", 64, _ONE, 1), ("3x3dbl_2", 96, _THREE, 1), ("3x3dbl_3", 96, _THREE, 2)],
        ],
        "shrink",
    )


def _second(wide: int, inner: int) -> _Block:
    return _Block(
        wide,
        [
            [("1x1", 192, _ONE, 1)],
            [("7x7_1", inner, _ONE, 1), ("7x7_2", inner, _ACROSS, 1), ("7x7_3", 192, _DOWN, 1)],
            [
                ("7x7dbl_1", inner, _ONE, 1),
                ("7x7dbl_2", inner, _DOWN, 1),
                ("7x7dbl_3", inner, _ACROSS, 1),
                ("7x7dbl_4", inner, _DOWN, 1),
                ("7x7dbl_5", 192, _ACROSS, 1),
            ],
            [("_pool", 192, _ONE, 1)],
        ],
        "mean",
    )


def _shrink_second(wide: int) -> _Block:
    return _Block(
        wide,
        [
            [("3x3_1", 192, _ONE, 1), ("3x3_2", 320, _THREE, 2)],
            [
                ("7x7x3_1", 192, _ONE, 1),
                ("7x7x3_2", 192, _ACROSS, 1),
                ("7x7x3_3", 192, _DOWN, 1),
                ("7x7x3_4", 192, _THREE, 2),
            ],
        ],
        "shrink",
    )


def _third(wide: int, pool: str) -> _Block:
    return _Block(
        wide,
        [
            [("1x1", 320, _ONE, 1)],
            [("3x3_1", 384, _ONE, 1), ("3x3_2a", 384, (1, 3), 1), ("3x3_2b", 384, (3, 1), 1)],
            [
                ("3x3dbl_1", 448, _ONE, 1),
                ("3x3dbl_2", 384, _THREE, 1),
                ("3x3dbl_3a", 384, (1, 3), 1),
                ("3x3dbl_3b", 384, (3, 1), 1),
            ],
            [("_pool", 192, _ONE, 1)],
        ],
        pool,
        ("3x3_2", "3x3dbl_3"),
    )
