"""A run on an accelerator mixes no devices: whole runs on one that is none, with true numbers.

Its tensors lie in the computer's memory and say that they are on "gpu"; what mixes them with others is an error, as on
CUDA. Torch can be told of such a device only before its first backward pass, so all of it runs in a process of its own.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils import backend_registration
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter, tree_map

ROOT = Path(__file__).resolve().parent.parent
NAME = "gpu"
MOVES = ("aten::_to_copy", "aten::copy_", "aten::_foreach_copy_")


@pytest.mark.skipif(
    not hasattr(backend_registration, "_setup_privateuseone_for_python_backend"), reason="needs a newer torch"
)
def test_runs_on_a_device_of_their_own_mix_none() -> None:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, __file__], check=False, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert done.stdout.split() == list(CASES)


class There(Tensor):
    """A tensor of the device, around one of the computer's memory."""

    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> There:
        made = Tensor._make_wrapper_subclass(
            cls,
            inner.size(),
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=torch.device(NAME, 0),
        )
        made.inner = inner
        return made

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return computed(func, args, kwargs or {})

    def tolist(self) -> Any:
        return self.inner.tolist()  # torch refuses it to subclasses


class Machine(TorchDispatchMode):
    """A computer with the device: what asks for a tensor there gets one."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if wanted(kwargs) or any(isinstance(leaf, There) for leaf in tree_iter((args, kwargs))):
            return computed(func, args, kwargs)
        return func(*args, **kwargs)


class Literals(TorchFunctionMode):
    """torch.tensor fills its tensor before a dispatch mode hears of it."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func in (torch.tensor, torch.as_tensor) and wanted(kwargs):
            device = kwargs.pop("device")
            return func(*args, **kwargs).to(device)
        return func(*args, **kwargs)


def wanted(kwargs: Any) -> bool:
    return kwargs.get("device") is not None and torch.device(kwargs["device"]).type == NAME


def computed(func: Any, args: Any, kwargs: Any) -> Any:
    """Do it in the computer's memory; the results are where they would be."""
    tensors = [leaf for leaf in tree_iter((args, kwargs)) if isinstance(leaf, Tensor)]
    there = [tensor for tensor in tensors if isinstance(tensor, There)]
    schema = func._schema
    check(schema, args, there, [tensor for tensor in tensors if not isinstance(tensor, There)])
    stays = bool(there) if kwargs.get("device") is None else wanted(kwargs)
    if wanted(kwargs):
        kwargs = {**kwargs, "device": torch.device("cpu")}
    plain = tree_map(lambda leaf: leaf.inner if isinstance(leaf, There) else leaf, (args, kwargs))
    result = func(*plain[0], **plain[1])
    if schema.name == "aten::copy_":
        return args[0]
    known = {id(tensor.inner): tensor for tensor in there} if schema.is_mutable else {}

    def wrapped(leaf: Any) -> Any:
        if not stays or not isinstance(leaf, Tensor):
            return leaf
        return known[id(leaf)] if id(leaf) in known else There(leaf)

    return tree_map(wrapped, result)


def check(schema: Any, args: Any, there: list[Tensor], here: list[Tensor]) -> None:
    """CUDA takes numbers and indices of the CPU beside its own tensors, and nothing else; it never writes to one."""
    if not there or not here or schema.name in MOVES:
        return
    strange = [tensor for tensor in here if tensor.dim()]
    if "index" in schema.name:
        strange = [tensor for tensor in strange if tensor.dtype not in (torch.long, torch.bool)]
    into = schema.is_mutable and isinstance(args[0], Tensor) and not isinstance(args[0], There)
    if strange or into:
        raise RuntimeError(f"{schema.name} of tensors on {NAME} and on the CPU: {[tuple(t.shape) for t in here]}")


# --- what runs there -------------------------------------------------------------------------------------------------


def run_there(config: Any, data: Any = None, half: bool = False) -> Any:
    """The toy's run, as tests.test_train makes it, on the device; its model in half precision if asked for."""
    from tests.toy import ToyDenoiser, toy_dataset
    from trilora_core.adapter import TriLoRA
    from trilora_core.train import Run

    denoiser, data = ToyDenoiser(), data or toy_dataset()
    dtype = torch.float16 if half else torch.float32
    denoiser.model.to(NAME, dtype)
    denoiser.compute_dtype = dtype

    def predict(latents: Tensor, noise: Tensor, times: Tensor, cond: Any) -> tuple[Tensor, Tensor]:
        assert latents.device.type == noise.device.type == NAME
        times, tokens = times.to(latents.device), torch.stack([tensor.to(latents.device) for tensor in cond])
        t = times.view(-1, 1, 1, 1)
        noisy = (1 - t) * latents + t * noise
        denoiser.calls += 1
        out = denoiser.model(noisy.to(dtype), times.to(dtype), tokens.to(dtype)).float()
        return (out * float("inf") if denoiser.calls in denoiser.poison_steps else out), noise - latents

    denoiser.predict = predict
    adapter = TriLoRA.create(
        denoiser.targets(), config.adapter, seed=config.seed, data_hash=data.content_hash, device=NAME
    )
    return Run(config, denoiser, data, adapter)


def resumed() -> None:
    """Stopped and resumed, measured and looked at on the way: the very run that the CPU makes in one go."""
    from tests.test_train import CONFIG, go, make_run, values
    from tests.toy import toy_dataset
    from trilora_core.config import MonitorConfig
    from trilora_core.monitor import split
    from trilora_core.session import train_to_file

    watch = MonitorConfig(validation_share=0.25, validate_every=4, spectrum_every=4, keep_best=True)
    optimizer = replace(CONFIG.optimizer, accumulation=2, clip_norm=0.1)
    options = {"optimizer": optimizer, "monitor": watch, "gradient_checkpointing": True}
    config = replace(CONFIG, steps=8, ema=0.9, save_every=3, **options)
    data, held_out = split(toy_dataset(8), 0.25, config.seed)

    def stop(step: Any) -> None:
        if step.step == 5:
            raise KeyboardInterrupt

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "toy.safetensors"
        with pytest.raises(KeyboardInterrupt):
            train_to_file(run_there(config, data), path, metadata={}, on_step=stop, held_out=held_out)
        run = run_there(config, data)
        outcome = train_to_file(run, path, metadata={}, on_step=lambda _: None, held_out=held_out, resume=True)
    assert outcome.steps_done == 8 and [measure.step for measure in outcome.measures] == [0, 4, 8]
    moments = [value for state in run.optimizer.state.values() for name, value in state.items() if name != "step"]
    assert moments and all(value.device.type == NAME for value in (*moments, *values(run)))
    assert all(part.device.type == "cpu" for layer in run.trainable.canonical().values() for part in layer.svd)
    alone = make_run(config, None, data)
    go(alone)
    pairs = zip(values(run), values(alone), strict=True)
    assert all(torch.allclose(one.cpu(), other, atol=1e-5) for one, other in pairs)


def half() -> None:
    """A base in float16: gradients are scaled, and a step that is left out lowers the scale and changes nothing."""
    from tests.test_train import CONFIG, go

    run = run_there(replace(CONFIG, steps=5, ema=0.9), half=True)
    run.denoiser.poison_steps = {3}
    assert [bool(step.dropped) for step in go(run)] == [False, False, True, False, False]
    assert run.scaler.get_scale() == 512.0 and run.scaler._scale.device.type == NAME
    run._result.go_back()


def optimizers() -> None:
    """Every optimizer that is installed moves what is on the device, and its state stays there."""
    from tests.test_train import CONFIG, go
    from trilora_core.config import OPTIMIZERS
    from trilora_core.errors import InputError
    from trilora_core.optim import check_optimizer

    for name in OPTIMIZERS:
        optimizer = replace(CONFIG.optimizer, name=name, schedule="constant", learning_rate=1.0, warmup_steps=0)
        try:
            check_optimizer(optimizer)
        except InputError:
            continue
        run = run_there(replace(CONFIG, steps=2, optimizer=optimizer))
        go(run)
        held = [value for state in run.optimizer.state.values() for value in state.values()]
        assert {value.device.type for value in held if isinstance(value, Tensor) and value.dim()} == {NAME}, name


def judged() -> None:
    """The CLIP score of a picture is that on the CPU."""
    from tests.judges import noise_pictures, write_clip
    from trilora_core.cli.evaluate_nets import load_judges

    with tempfile.TemporaryDirectory() as folder:
        clips = [load_judges(None, write_clip(Path(folder)), torch.device(name)).clip for name in ("cpu", NAME)]
    here, there = (clip.scores(noise_pictures(2, 40), ["a red house", "a cat"]) for clip in clips if clip)
    assert there == pytest.approx(here, abs=1e-3)


def told() -> None:
    """The device tells what CUDA would: mixed tensors, and a sum on the CPU of what is there."""
    there = torch.ones(2, device=NAME)
    assert (there * torch.tensor(2.0)).device.type == NAME
    for mixed in (lambda: there + torch.ones(2), lambda: torch.tensor(0.0).add_(there.sum())):
        with pytest.raises(RuntimeError, match="on the CPU"):
            mixed()


CASES = {"told": told, "resumed": resumed, "half": half, "optimizers": optimizers, "judged": judged}


def main() -> None:
    class Backend(backend_registration._DummyBackendModule):
        def get_amp_supported_dtype(self) -> list[torch.dtype]:
            return [torch.float16, torch.bfloat16]

    backend_registration._setup_privateuseone_for_python_backend(NAME, backend_module=Backend())
    from trilora_core import spectral, transfer

    spectral._DECOMPOSING_DEVICES, transfer._STAGED = ("cpu", NAME), {NAME}  # as CUDA
    for name, case in CASES.items():
        with Machine(), Literals():
            case()
        print(name, flush=True)


if __name__ == "__main__":
    main()
