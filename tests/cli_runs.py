"""What tests of `train` on the command line share: a tiny model, pictures, a cache of their own, and a short run."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.tiny_pipeline import write_pictures, write_pipeline

__all__ = ["base", "cache", "few", "pictures"]


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No test may write into the user's own cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRILORA_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pipeline(tmp_path_factory.mktemp("models") / "base")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pictures(tmp_path_factory.mktemp("data") / "pictures")


def few(base: Path, pictures: Path, output: Path, *extra: str) -> list[str]:
    """The words of a run of two steps."""
    argv = ["train", "--model", str(base), "--data", str(pictures), "--output", str(output), "--rank", "2"]
    return [*argv, "--steps", "2", "--lr", "0.01", *extra]
