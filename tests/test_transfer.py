"""A step queues its work without waiting for the device, except once: in Run._clip.

The meta device stands in for an accelerator: nothing of it can come back to the host, so that what reads it either
goes through the watch below or fails.
"""

from __future__ import annotations

import sys
from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from tests.tiny_pipeline import write_pipeline
from trilora_core import recompute, transfer
from trilora_core.adapter import TriLoRA
from trilora_core.config import AdapterConfig, LossConfig, OptimizerConfig, PreserveConfig, TrainConfig
from trilora_core.data import MemoryStore
from trilora_core.data.dataset import load_tensors
from trilora_core.preserve import Amount, Captions, Kept
from trilora_core.recompute import checkpointed
from trilora_core.train import Run
from trilora_core.transfer import upload

META = torch.device("meta")
READS = {"item", "tolist", "cpu", "numpy", "__bool__", "__int__", "__float__", "__index__", "nonzero", "equal"}


class Watch(TorchFunctionMode):
    """Notes (function, operation) of all that waits for the device: reads of its tensors, copies to it at once."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, str]] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None) -> Any:
        name = getattr(func, "__name__", "")
        first = args[0] if args and isinstance(args[0], Tensor) else None
        if first is not None and first.device == META and name in READS:
            self._note(name)
            return [1.0] * first.numel() if name == "tolist" else 1.0
        result = func(*args, **(kwargs or {}))
        moved = isinstance(result, Tensor) and result.device == META and (first is None or first.device != META)
        queued = (kwargs or {}).get("non_blocking", False)
        if moved and name in {"to", "cuda", "tensor", "as_tensor"} and not queued:
            self._note(name)
        return result

    def _note(self, name: str) -> None:
        frame = sys._getframe(2)
        self.found.append((frame.f_code.co_name, name))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("diffusers", reason="the diffusers backend is not tested: pip install -e .[standalone]")
    return write_pipeline(tmp_path_factory.mktemp("pipeline"))


def _kept() -> Kept:
    """One point of a path of the base, whose prediction comes from the host's memory."""
    store, picture = MemoryStore(), torch.randn(4, 8, 8)
    store.put("caption", {"tokens": torch.randn(5, 32)})
    store.put("point", {"latents": picture, "noise": picture, "u": torch.rand(1), "prediction": picture})
    amount = Amount(weight=0.1, share=0.5)
    return Kept((("point", 0),), Captions(("a lamp",), ("caption",), store), (8, 8), amount)


def _run(folder: Path, config: TrainConfig) -> Run:
    from trilora_core.backend_diffusers import DiffusersDenoiser, load_pipeline

    pipe = load_pipeline(str(folder))
    denoiser = DiffusersDenoiser(pipe)
    pipe.unet.to(META)
    masks = [torch.ones(1, 8, 8)] * 3
    data = load_tensors([torch.randn(4, 8, 8)] * 3, [{"tokens": torch.randn(5, 32)}] * 3, masks=masks)
    adapter = TriLoRA.create(denoiser.targets(), config.adapter, seed=0, data_hash="")
    kept = None if config.preserve.base == "off" else _kept()
    return Run(config, denoiser, data, adapter, kept=kept)


PLAIN = TrainConfig(steps=3, batch_size=2, adapter=AdapterConfig(rank=2, init="ones"))
FULL = TrainConfig(
    steps=3,
    batch_size=2,
    ema=0.9,
    gradient_checkpointing=True,
    adapter=AdapterConfig(rank=2, init="ones", rank_dropout=0.5),
    optimizer=OptimizerConfig(accumulation=2, warmup_steps=2),
    preserve=PreserveConfig("light"),
    loss=LossConfig(min_snr_gamma=5.0, noise_offset=0.05, orthogonality=0.1),
)


@pytest.mark.parametrize("config", [PLAIN, FULL], ids=["plain", "full"])
def test_a_step_waits_once(folder: Path, config: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer, "_STAGED", {"meta"})
    monkeypatch.setattr(recompute, "_autocast_state", lambda _tensors: nullcontext)  # which meta does not have
    run = _run(folder, config)
    with ExitStack() as stack:
        stack.enter_context(run.trainable.attach(run.targets()))
        if config.gradient_checkpointing:
            stack.enter_context(checkpointed(run.blocks(), in_place_safe=run.denoiser.in_place_safe))
        for _ in range(2):
            with Watch() as watch:
                run.advance()
            assert watch.found == [("_clip", "tolist")]


def test_the_watch_sees_what_waits() -> None:
    with Watch() as watch:
        torch.zeros(2).to(META)
        torch.zeros(2, device=META).sum().item()
    assert [name for _, name in watch.found] == ["to", "item"]


def test_upload_keeps_values_and_sets_the_format() -> None:
    tensor = torch.randn(3)
    assert upload(tensor, torch.device("cpu")) is tensor
    assert torch.equal(upload(tensor, torch.device("cpu"), torch.float64), tensor.double())
    assert upload(tensor, META).device == META
