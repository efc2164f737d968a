"""Every choice of layers on the host's models: names, gradients beside dense weights, and the saved file."""

from __future__ import annotations

from collections import Counter
from contextlib import nullcontext
from importlib import import_module
from pathlib import Path
from typing import Any

import comfy.lora
import comfy.sd
import comfy.utils
import torch

from . import bridge_apply_models as applied
from . import bridge_training as training
from . import bridge_training_models as small


def main(pack: Any, arguments: dict[str, Any]) -> dict[str, Any]:
    """Measures for each kind of model in arguments["kinds"]."""
    return {
        "node": _node(pack),
        "trained": _trained(pack),
        **{kind: _Case(pack, kind).measure() for kind in arguments["kinds"]},
    }


def _node(pack: Any) -> dict[str, Any]:
    """The options node, executed as the host does it."""
    config = import_module(".trilora_core.config", pack.__name__)
    node = import_module(".nodes.layer_options", pack.__name__).TriLoRALayerOptions
    specs = node.GET_SCHEMA().inputs
    defaults = {spec.id: spec.default for spec in specs if spec.id != "options"}

    def run(**inputs: Any) -> Any:
        return node.PREPARE_CLASS_CLONE(None).EXECUTE_NORMALIZED(**inputs).args[0]

    given = config.TrainConfig(steps=77, adapter=config.AdapterConfig(init="svd"))
    lines = {"include": "*attn*\n\n  *_ff_* \n", "exclude": "*to_k", "rank_dropout": 0.25}
    after = run(**{**defaults, **lines, "which": "attention+ff"}, options=given)
    return {
        "widgets": list(defaults),
        "untouched": run(**defaults) == config.TrainConfig(),
        "kept": [after.steps, after.adapter.init],
        "set": [after.adapter.layers.which, *after.adapter.layers.include, "-", *after.adapter.layers.exclude],
        "rank_dropout": after.adapter.rank_dropout,
    }


def _trained(pack: Any) -> dict[str, Any]:
    """Two steps on SD1.5's shape with a choice of layers, from the node's run to its file."""
    names = (".trilora_core.config", ".trilora_core.data.dataset", ".trilora_core.layers", ".nodes.host.run")
    config, data, layers, host = (import_module(name, pack.__name__) for name in names)
    chosen = config.LayerConfig("attention+ff+conv", include=("*_mid_*", "*_up_*"), exclude=("*attn1*",))
    options = config.TrainConfig(
        steps=2, gradient_checkpointing=True, adapter=config.AdapterConfig(rank=2, layers=chosen)
    )
    latents = [torch.randn(4, 8, 8, generator=torch.Generator().manual_seed(seed)) for seed in range(2)]
    pictures = data.load_tensors(latents, [small.condition("sd15", seed) for seed in range(2)])
    patcher = small.load("sd15")
    before = training._contents(patcher.model)
    with torch.inference_mode():  # as a node
        outcome, _ = host.train_in_host(
            patcher, pictures, "chosen", options, resume=False, start_from=None, prior=None, node_id=None
        )
    kinds = layers.kinds_of(outcome.adapter.layers, "sd15")
    return {
        "kinds": Counter(kinds.values()),
        "others": [stem for stem in outcome.adapter.layers if stem not in kinds or "_down_" in stem],
        "arguments": outcome.adapter.metadata["ss_network_args"],
        "learnt": sum(bool(layer.svd.s.any()) for layer in outcome.adapter.layers.values()),
        "untouched": training._contents(patcher.model) == before and training._clean(patcher.model),
    }


class _Case:
    """One kind of model, adapted wherever it can be."""

    def __init__(self, pack: Any, kind: str) -> None:
        self.kind = kind
        self.bridge = training._Bridge(pack)
        self.layers = import_module(".trilora_core.layers", pack.__name__)
        self.files = import_module(".trilora_core.fileformat", pack.__name__)
        self.models = import_module(".nodes.host.models", pack.__name__)
        self.apply = import_module(".nodes.host.patching", pack.__name__).apply
        self.patcher = small.load(kind, inference=False)
        self.chosen = {
            which: self._targets(self.bridge.config.LayerConfig(which)) for which in self.bridge.config.LAYERS
        }
        self.everything = self.chosen["attention+ff+conv"]

    def measure(self) -> dict[str, Any]:
        known = comfy.lora.model_lora_keys_unet(self.patcher.model, {})
        kinds = self.layers.kinds_of(self.everything, self.kind)
        answer: dict[str, Any] = {
            "kinds": Counter(kinds.values()),
            "counts": {which: len(found) for which, found in self.chosen.items()},
            "unknown": [stem for stem in self.everything if stem not in known],
            "stems": list(self.everything),
            "nothing": self._nothing(),
        }
        before = training._contents(self.patcher.model)
        objects = training._objects(self.patcher.model)
        adapter, gradients = self._gradients()
        answer["restored"] = (
            training._contents(self.patcher.model) == before
            and training._objects(self.patcher.model) == objects
            and training._clean(self.patcher.model)
        )
        return answer | gradients | self._file(adapter)

    def _targets(self, layers: Any) -> Any:
        return self.models.targets(self.patcher, layers)

    def _nothing(self) -> str:
        config = self.bridge.config.LayerConfig("self-attention", include=("*attn9*",))
        try:
            self._targets(config)
        except ValueError as error:
            return str(error)
        return ""

    def _gradients(self) -> tuple[Any, dict[str, Any]]:
        """How far the gradients are from those of dense weights, with and without checkpointed blocks."""
        batch, found = training._batch(self.kind), {}
        with self.bridge.training.training(self.patcher):
            denoiser = self.bridge.denoiser.HostDenoiser(self.patcher)
            targets = denoiser.targets(self.bridge.config.LayerConfig("attention+ff+conv"))
            adapter = self.bridge.adapter(targets)
            times = denoiser.times(torch.tensor([0.05, 0.35, 0.6, 0.95]))
            factors = {name: p.detach().clone() for name, p in adapter.named_parameters()}
            wanted = training._reference(self.kind, targets, factors, adapter, batch, times)
            for name, context in (("plain", nullcontext()), ("recomputed", self.bridge.recomputed(denoiser))):
                with adapter.attach(targets), context:
                    got = training._gradients(denoiser, adapter, batch, times)
                found[name] = training._difference(got, wanted)
        silent = [name for name, gradient in wanted.items() if name.endswith(".up") and not gradient.any()]
        return adapter, {**found, "silent": silent}

    def _file(self, adapter: Any) -> dict[str, Any]:
        """What the saved file changes, through our nodes' way and through the native loader, beside the exact ΔW."""
        file = Path(f"{self.kind}.safetensors").resolve()
        self.files.write_adapter(file, self.files.Adapter(adapter.canonical(), {}))
        base = applied.snapshot(self.patcher)
        lora = comfy.utils.load_torch_file(str(file), safe_load=True)
        ours, _ = self.apply(self.files.read_adapter(file), self.patcher, 1.0)
        native, _ = comfy.sd.load_lora_for_models(self.patcher, None, lora, 1.0, 0.0)
        changes = {}
        for way, patched in (("ours", ours), ("native", native)):
            loaded = applied.snapshot_loaded(patched)
            changes[way] = {key: loaded[key] - base[key] for key in base if not torch.equal(loaded[key], base[key])}
        applied.unload()
        exact = self._exact(adapter, base)
        return {
            "weights": {way: set(found) == set(exact) for way, found in changes.items()},
            "between": max(applied.error(changes["ours"][key], changes["native"][key]) for key in exact),
            "to_exact": max(applied.error(changes["native"][key], exact[key]) for key in exact),
        }

    def _exact(self, adapter: Any, base: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """ΔW of every weight from the factors themselves, row ranges put together."""
        names = {id(module): f"{name}.weight" for name, module in self.patcher.model.named_modules()}
        found: dict[str, torch.Tensor] = {}
        for stem, branch in adapter.branches.items():
            target = self.everything[stem]
            key = names[id(target.module)]
            whole = found.setdefault(key, torch.zeros(base[key].shape, dtype=torch.float64)).flatten(1)
            rows = slice(*(target.rows or (0, whole.shape[0])))
            whole[rows] = (branch.up @ branch.gained_down()).detach().double()
        return found
