"""Calibration of the host's own models: sums beside float64, a start from them, and a model left as it was."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import torch

from . import bridge_training as training
from . import bridge_training_models as small

LOOKS = 6


def main(pack: Any, arguments: dict[str, Any]) -> dict[str, Any]:
    """Measures for each kind of model in arguments["kinds"]."""
    core = _Core(pack)
    return {kind: _measure(core, kind) for kind in arguments["kinds"]}


class _Core:
    """The pack's modules that are under test."""

    def __init__(self, pack: Any) -> None:
        def load(name: str) -> Any:
            return import_module(name, pack.__name__)

        self.calibrate = load(".trilora_core.calibrate")
        self.config = load(".trilora_core.config")
        self.config_data = load(".trilora_core.config_data")
        self.dataset = load(".trilora_core.data.dataset")
        self.moments = load(".trilora_core.moments")
        self.denoiser = load(".nodes.host.denoiser")
        self.training = load(".nodes.host.training")
        self.run = load(".nodes.host.run")
        self.errors = load(".trilora_core.errors")
        self.adapter = load(".trilora_core.adapter")


def _measure(core: _Core, kind: str) -> dict[str, Any]:
    patcher = small.load(kind)
    before, objects = training._contents(patcher.model), training._objects(patcher.model)
    data = _data(core, kind, 3, resolution=64)
    prior = [small.condition(kind, seed, tokens) for seed, tokens in ((5, 77), (6, 77), (7, 154))]
    found, seen = _calibrated(core, patcher, data, prior)
    answer = {
        "layers": len(found.inputs),
        "inputs": len(set(found.inputs.values())),
        "error": max(_error(found.learned[name], seen[name]) for name in set(found.inputs.values())),
        "stopped": _stopped(core, patcher, data, prior),
        "bit_identical": training._contents(patcher.model) == before,
        "same_objects": training._objects(patcher.model) == objects,
        "clean": training._clean(patcher.model) and not _pre_hooks(patcher.model),
    }
    answer["started"], answer["learnt"] = _trained(core, patcher, data, found)
    answer["refused"] = [
        _refused(core, patcher, _data(core, kind, 3, resolution=128), found),
        _refused(core, small.load(kind, seed=1), data, found),
        _refused(core, patcher, data, found, "attention+ff"),
        _refused(core, patcher, data, None),
    ]
    answer["bit_identical"] = answer["bit_identical"] and training._contents(patcher.model) == before
    return answer


def _data(core: _Core, kind: str, count: int, *, resolution: int) -> Any:
    channels = small.channels(kind)
    latents = [torch.randn(channels, 8, 8, generator=torch.Generator().manual_seed(seed)) for seed in range(count)]
    config = core.config_data.DataConfig(resolution=resolution)
    return core.dataset.load_tensors(latents, [small.condition(kind, seed) for seed in range(count)], config=config)


def _facts(core: _Core, denoiser: Any, data: Any) -> Any:
    whole = core.moments.Storage(whole=1 << 20)
    prompts = ["one", "two", "three"]
    return core.calibrate.facts_of(denoiser, data, prompts, "", looks=LOOKS, storage=(whole, core.moments.PRIOR))


def _calibrated(core: _Core, patcher: Any, data: Any, prior: list[Any]) -> tuple[Any, dict[str, Any]]:
    """The calibration, and the float64 sums over the training set by input, gathered by hooks of the test's own."""
    with torch.inference_mode(), core.training.training(patcher):
        denoiser = core.denoiser.HostDenoiser(patcher)
        facts, targets = _facts(core, denoiser, data), denoiser.targets()
        sums = {stem: [0, 0.0] for stem in targets}
        wanted = {"on": True}

        def hook(stem: str) -> Any:
            def see(_module: Any, args: Any) -> None:
                if wanted["on"]:
                    rows = args[0].detach().flatten(0, -2).double()
                    sums[stem][0] += len(rows)
                    sums[stem][1] = sums[stem][1] + rows.T @ rows

            return see

        def progress(done: int, _total: int) -> None:
            wanted["on"] = done < LOOKS

        handles = [target.module.register_forward_pre_hook(hook(stem)) for stem, target in targets.items()]
        try:
            found = core.calibrate.calibrate(denoiser, data, prior, facts, progress=progress)
        finally:
            for handle in handles:
                handle.remove()
    return found, {stem: total / count for stem, (count, total) in sums.items()}


def _error(moments: Any, wanted: Any) -> float:
    """Largest error of an entry against the mean eigenvalue."""
    return float((moments.matrix.double() - wanted).abs().max() / wanted.abs().max())


def _stopped(core: _Core, patcher: Any, data: Any, prior: list[Any]) -> bool:
    """Whether an exception of the progress callback passes through."""

    def progress(done: int, _total: int) -> None:
        if done > LOOKS:
            raise KeyboardInterrupt

    try:
        with torch.inference_mode(), core.training.training(patcher):
            denoiser = core.denoiser.HostDenoiser(patcher)
            core.calibrate.calibrate(denoiser, data, prior, _facts(core, denoiser, data), progress=progress)
    except KeyboardInterrupt:
        return True
    return False


def _options(core: _Core, which: str = "attention") -> Any:
    adapter = core.config.AdapterConfig(rank=2, init="contrast", layers=core.config.LayerConfig(which))
    return core.config.TrainConfig(steps=2, adapter=adapter)


def _trained(core: _Core, patcher: Any, data: Any, found: Any) -> tuple[bool, int]:
    """Two steps from the node's own run: whether it says what it started from, and how many layers learnt."""
    with torch.inference_mode():
        outcome, _ = core.run.train_in_host(
            patcher,
            data,
            "started",
            _options(core),
            resume=False,
            start_from=None,
            prior=None,
            node_id=None,
            calibration=found,
        )
    key = outcome.adapter.metadata.get("trilora.calibration_key")
    return key == found.facts.key, sum(bool(layer.svd.s.any()) for layer in outcome.adapter.layers.values())


def _refused(core: _Core, patcher: Any, data: Any, found: Any, which: str = "attention") -> str:
    kept = {"resume": False, "start_from": None, "prior": None, "node_id": None}
    try:
        with torch.inference_mode():
            core.run.train_in_host(patcher, data, "refused", _options(core, which), **kept, calibration=found)
    except core.errors.InputError as error:
        return str(error)
    return ""


def _pre_hooks(model: Any) -> list[Any]:
    return [module for module in model.modules() if module._forward_pre_hooks]
