"""Extract TriLoRA on the host's own models, beside a change that the host's own LoRA loader put onto them."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import comfy.model_management
import comfy.sd
import torch
from comfy_extras.nodes_model_merging import ModelMergeSimple

from . import bridge_apply_models as models
from . import bridge_training as training
from . import bridge_training_models as small
from . import bridge_training_quantised as quantised
from . import text_models
from .bridge_apply_nodes import complaint, run
from .bridge_strength import state_dict

ALL = "attention+ff+conv"
RANK = 3
SKIPPED = slice(1, None, 4)  # of the layers, in order of the modules: those that the change leaves alone
KEPT = 0.75  # of the fine-tuned model in the mix
TEXT = {"sd15": {"lora_te": 768}, "sdxl": {"lora_te1": 768, "lora_te2": 1280}}  # widths of the encoders


def main(pack: Any, arguments: dict[str, Any]) -> dict[str, Any]:
    """Measures for each kind of model in arguments["kinds"], and the complaints."""
    with torch.inference_mode():  # as a node
        found = {kind: _Case(pack, kind).measure() for kind in arguments["kinds"]}
        return found | {"refused": _refused(pack), "few_bits": _few_bits(pack)}


def extract(pack: Any, tuned: Any, base: Any, **inputs: Any) -> tuple[Any, str]:
    """The node's adapter and report."""
    node = import_module(".nodes.extract", pack.__name__).ExtractTriLoRA
    return run(node, **{"model_tuned": tuned, "model_base": base, "rank": RANK, "layers": ALL, **inputs}).args


def refused(pack: Any, tuned: Any, base: Any, **inputs: Any) -> str:
    """What the node says."""
    return complaint(lambda: extract(pack, tuned, base, **inputs))


class _Case:
    """One kind of model, the change that it gets, and its tuned twin as a patch of the host."""

    def __init__(self, pack: Any, kind: str) -> None:
        self.pack, self.kind = pack, kind
        self.base, self.clip = small.load(kind), _clip(kind) if kind in TEXT else None
        layers = import_module(".trilora_core.config", pack.__name__).LayerConfig(ALL)
        shapes = {}
        for stem, target in import_module(".nodes.host.models", pack.__name__).targets(self.base, layers).items():
            first, *rest = target.module.weight.shape
            shapes[stem] = (first if target.rows is None else target.rows[1] - target.rows[0], *rest)
        self.skipped = list(shapes)[SKIPPED]
        self.made = models.adapter(
            pack, {s: shape for s, shape in shapes.items() if s not in self.skipped} | _text(kind)
        )
        self.tuned, self.tuned_clip = comfy.sd.load_lora_for_models(
            self.base, self.clip, state_dict(pack, self.made), 1.0, 1.0
        )

    def measure(self) -> dict[str, Any]:
        """Largest relative errors over the layers by the way that the tuned model came to be, and what is left."""
        before = self._state()
        found: dict[str, Any] = {"patched": self._compare(self.tuned, self.tuned_clip)}
        found["unchanged"] = self._state() == before
        found["own_weights"] = self._own_weights()
        if self.kind != "sdxl":  # the slow one, which differs from SD 1.5 in nothing that matters here
            found["mixed"], found["loaded"] = self._mixed(), self._loaded()
        found["unloaded"] = self._numbers() == before[0]
        found["equal"] = refused(self.pack, self.base, self.base.clone())
        found["skipped"] = self.skipped
        return found

    def _compare(self, tuned: Any, tuned_clip: Any, share: float = 1.0) -> dict[str, Any]:
        """The extracted change beside the known one, in float64."""
        clips = {} if tuned_clip is None else {"clip_tuned": tuned_clip, "clip_base": self.clip}
        adapter, report = extract(self.pack, tuned, self.base, **clips)
        wanted = [stem for stem in self.made.layers if clips or not stem.startswith("lora_te")]
        errors = {
            stem: models.error(models.change(adapter, stem), share * models.change(self.made, stem))
            for stem in wanted
            if stem in adapter.layers
        }
        return {
            "error": max(errors.values()),
            "missing": sorted(set(wanted) - set(adapter.layers)),
            "more": sorted(set(adapter.layers) - set(wanted)),
            "text": sum(stem.startswith("lora_te") for stem in errors),
            "ranks": sorted({len(layer.svd.s) for layer in adapter.layers.values()}),
            "report": report,
        }

    def _loaded(self) -> dict[str, Any]:
        """While the change is merged into the very weights of the base, which then lie in the host's backup alone.

        Beside the twin: of `tuned`, which shares these weights, the same mistake on both sides would cancel.
        """
        patchers = [self.tuned] + ([self.tuned_clip.patcher] if self.tuned_clip else [])
        comfy.model_management.load_models_gpu(patchers)
        before = self._state()
        found = self._compare(self.twin, self.twin_clip)
        found["unchanged"] = self._state() == before
        models.unload()
        return found

    def _own_weights(self) -> dict[str, Any]:
        """A tuned model of its own whose weights hold the change, as a fine-tuned checkpoint."""
        self.twin, self.twin_clip = small.load(self.kind), None
        _fill(self.twin, models.snapshot_loaded(self.tuned))
        if self.clip is not None:
            self.twin_clip = _clip(self.kind, seed=None)
            _fill(self.twin_clip.patcher, models.snapshot_loaded(self.tuned_clip.patcher))
        models.unload()
        self.before_twin = self._state(self.twin)
        found = self._compare(self.twin, self.twin_clip)
        return found | {"unchanged": self._state(self.twin) == self.before_twin}

    def _mixed(self) -> dict[str, Any]:
        """The host's own mix of the twin and the base, which is a patch of another kind; without text encoders."""
        (mixed,) = ModelMergeSimple().merge(self.twin, self.base, KEPT)
        found = self._compare(mixed, None, KEPT)
        return found | {"unchanged": self._state(self.twin) == self.before_twin}

    def _state(self, *more: Any) -> Any:
        """Every number and object of the models, what is patched onto them, and what the host has loaded."""
        patchers = [*self._patchers(), *more]
        objects = {id(each.model): training._objects(each.model) for each in patchers}
        about = [
            (str(each.patches_uuid), sorted(each.patches), sorted(each.backup), each.loaded_size(), each.model.device)
            for each in patchers
        ]
        loaded = [id(each.model) for each in comfy.model_management.current_loaded_models]
        return self._numbers(*more), objects, about, loaded, [training._clean(each.model) for each in patchers]

    def _numbers(self, *more: Any) -> dict[int, str]:
        """All that the models hold."""
        whole = {id(each.model): each.model for each in (*self._patchers(), *more)}
        return {place: training._contents(model) for place, model in whole.items()}

    def _patchers(self) -> list[Any]:
        return [self.base, self.tuned] + ([self.clip.patcher, self.tuned_clip.patcher] if self.clip else [])


def _clip(kind: str, **options: Any) -> Any:
    return text_models.clip(kind, words=50, **options)


def _text(kind: str) -> dict[str, tuple[int, ...]]:
    """The layers of the small text encoders by the names of files, and their shapes."""
    found = {}
    for prefix, width in TEXT.get(kind, {}).items():
        for layer in (f"{prefix}_text_model_encoder_layers_{index}" for index in range(text_models.LAYERS)):
            found |= {f"{layer}_self_attn_{part}_proj": (width, width) for part in ("q", "k", "v", "out")}
            inner = text_models.LAYER["intermediate_size"]
            found |= {f"{layer}_mlp_fc1": (inner, width), f"{layer}_mlp_fc2": (width, inner)}
    return found


def _fill(patcher: Any, weights: dict[str, torch.Tensor]) -> None:
    for name, parameter in patcher.model.named_parameters():
        parameter.copy_(weights[name])


def _refused(pack: Any) -> dict[str, str]:
    """Two architectures, a text encoder in fp8, one clip of two, unknown models and clips."""
    sd15, other, sd3 = small.load("sd15"), small.load("sd15", seed=1), small.load("sd3")
    clips = {"clip_tuned": _clip("sd15", dtype=torch.float8_e4m3fn), "clip_base": _clip("sd15")}
    return {
        "architectures": refused(pack, sd3, sd15),
        "text_fp8": refused(pack, other, sd15, **clips),
        "one_clip": refused(pack, other, sd15, clip_tuned=clips["clip_base"]),
        "unknown": refused(pack, models.unet(), sd15),
        "other_clips": refused(pack, sd3, sd3, clip_tuned=clips["clip_base"], clip_base=clips["clip_base"]),
    }


def _few_bits(pack: Any) -> dict[str, Any]:
    """What is said of weights of few bits in the tuned and in the base model, and that they stay as they are."""
    found: dict[str, Any] = {}
    base = small.load("sd15", seed=1)
    for name in ("scaled_fp8", *quantised.LAYOUTS):
        file = quantised._quantised(name)
        if file is not None:
            model = comfy.sd.load_diffusion_model_state_dict(dict(file))
            before = quantised._contents(model.model)
            said = {"tuned": refused(pack, model, base), "base": refused(pack, base, model)}
            found[name] = said | {"unchanged": quantised._contents(model.model) == before}
    plain = models.unet(torch.float8_e4m3fn)
    plain.model.model_config.unet_config = {**plain.model.model_config.unet_config, "context_dim": 768}
    found["fp8"] = {"tuned": refused(pack, plain, plain), "base": "", "unchanged": True}
    return found
