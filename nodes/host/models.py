"""What the host's model is: architecture, layers by the names of files, blocks, name and fingerprint."""

from __future__ import annotations

import hashlib
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import comfy.model_base
import comfy.utils
import torch
from comfy.ldm.modules.attention import BasicTransformerBlock
from comfy.ldm.modules.diffusionmodules.openaimodel import ResBlock
from torch import Tensor, nn

from ...trilora_core.branch import Target
from ...trilora_core.config import LayerConfig
from ...trilora_core.content import content_of
from ...trilora_core.errors import InputError
from ...trilora_core.layers import DEFAULT, choose, kinds_of

__all__ = [
    "Architecture",
    "bare_content",
    "bare_fingerprint",
    "base_name",
    "blocks",
    "detect",
    "fingerprint",
    "fingerprint_modules",
    "patches",
    "prediction_type",
    "targets",
    "unpatched",
    "unpatched_weights",
]

SAMPLES = 16  # values of each weight that go into a fingerprint
Place = tuple[str, tuple[int, int] | None]  # path of a module in the denoiser, and (first row, end) or None for all


@dataclass(frozen=True)
class Architecture:
    """One kind of model that can be trained: how the host's layers are spelled in files and what to recompute."""

    name: str
    title: str
    fits: Callable[[Any], bool]
    layers: Callable[[Any], Iterator[tuple[str, Place]]]
    block_types: tuple[type[nn.Module], ...] = ()
    block_lists: tuple[str, ...] = ()
    in_place: bool = False  # its blocks overwrite their inputs


def _is_sd15(model: Any) -> bool:
    config = model.model_config.unet_config
    return type(model) is comfy.model_base.BaseModel and config.get("context_dim") == 768


def _sd15_layers(model: Any) -> Iterator[tuple[str, Place]]:
    for spelled, ours in comfy.utils.unet_to_diffusers(model.model_config.unet_config).items():
        if ours.endswith(".weight"):
            yield _kohya(spelled.removesuffix(".weight")), (ours.removesuffix(".weight"), None)


def _own_layers(model: Any) -> Iterator[tuple[str, Place]]:
    for path, _ in model.diffusion_model.named_modules():
        yield _kohya(path), (path, None)


def _sd3_layers(model: Any) -> Iterator[tuple[str, Place]]:
    for spelled, place in comfy.utils.mmdit_to_diffusers(model.model_config.unet_config).items():
        if spelled.endswith(".weight"):
            weight, offset = (place, None) if isinstance(place, str) else place[:2]
            rows = None if offset is None else (offset[1], offset[1] + offset[2])
            yield f"transformer.{spelled.removesuffix('.weight')}", (weight.removesuffix(".weight"), rows)


ARCHITECTURES = (
    Architecture("sd15", "SD 1.5", _is_sd15, _sd15_layers, block_types=(BasicTransformerBlock, ResBlock)),
    Architecture(
        "sdxl",
        "SDXL",
        lambda model: type(model) is comfy.model_base.SDXL,
        _own_layers,
        block_types=(BasicTransformerBlock, ResBlock),
    ),
    Architecture(
        "sd3", "SD3", lambda model: type(model) is comfy.model_base.SD3, _sd3_layers, block_lists=("joint_blocks",)
    ),
    Architecture(
        "flux",
        "Flux",
        lambda model: type(model) is comfy.model_base.Flux,
        _own_layers,
        block_lists=("double_blocks", "single_blocks"),
        in_place=True,
    ),
)


def detect(model: Any) -> Architecture:
    """The architecture of a host's model; raises InputError for one that cannot be trained here."""
    for architecture in ARCHITECTURES:
        if architecture.fits(model):
            _check_inputs(model)
            return architecture
    known = ", ".join(architecture.title for architecture in ARCHITECTURES)
    kind = f"{type(model).__name__} ({type(model.model_config).__name__})"
    raise InputError(f"this model is a {kind}; known kinds are {known}: give a model of one of these")


def targets(patcher: Any, layers: LayerConfig = DEFAULT) -> dict[str, Target]:
    """The chosen layers by canonical stem, in the order of the denoiser's modules; InputError when none is left."""
    model = patcher.model
    architecture = detect(model)
    places = dict(architecture.layers(model))
    found: dict[str, Target] = {}
    for stem in kinds_of(places, architecture.name):
        path, rows = places[stem]
        module = _submodule(model.diffusion_model, path)
        if hasattr(module, "weight"):  # not those that only some models of the architecture have
            hidden = unpatched(patcher, f"diffusion_model.{path}.weight")
            found[stem] = Target(module, rows, hidden, _reader(module))
    # the host builds its maps from sets of strings, whose order changes from one process to the next
    order = {id(module): index for index, module in enumerate(model.diffusion_model.modules())}
    stems = sorted(found, key=lambda stem: (order[id(found[stem].module)], found[stem].rows or (0, 0)))
    return {stem: found[stem] for stem in choose(kinds_of(stems, architecture.name), layers)}


def blocks(model: Any) -> list[nn.Module]:
    """The modules that gradient checkpointing recomputes one by one."""
    architecture, denoiser = detect(model), model.diffusion_model
    listed = [block for name in architecture.block_lists for block in getattr(denoiser, name)]
    return listed + [module for module in denoiser.modules() if isinstance(module, architecture.block_types)]


def base_name(patcher: Any) -> str:
    """The name of the file that the model came from where the host still knows it, else the kind of model."""
    init = getattr(patcher, "cached_patcher_init", None)
    if init is not None and init[1] and isinstance(init[1][0], str):
        return Path(init[1][0]).stem
    return detect(patcher.model).title


def prediction_type(patcher: Any) -> str:
    """What the network predicts, by its name in file metadata: "epsilon", "v" or "flow"."""
    kinds = {base.__name__ for base in type(patcher.get_model_object("model_sampling")).__mro__}
    return "v" if "V_PREDICTION" in kinds else "flow" if "CONST" in kinds else "epsilon"


def fingerprint(patcher: Any) -> str:
    """Which base this is, by content: every unpatched weight, what is patched onto them, its noise schedule.

    Samples of the values, the same on any device.
    """
    detect(patcher.model)
    schedule = _schedule(patcher.get_model_object("model_sampling"))
    return fingerprint_modules([*unpatched_weights(patcher), schedule, *patches(patcher)])


_BARE: weakref.WeakKeyDictionary[nn.Module, str] = weakref.WeakKeyDictionary()


def bare_fingerprint(patcher: Any) -> str:
    """The fingerprint of the model as it was loaded, without what other nodes have put onto it; found once a model."""
    if patcher.model not in _BARE:
        # the model's own, also while another node's stands in its place
        sampling = patcher.object_patches_backup.get("model_sampling", patcher.model.model_sampling)
        schedule = _schedule(sampling)
        _BARE[patcher.model] = fingerprint_modules([*unpatched_weights(patcher), schedule])
    return _BARE[patcher.model]


_CONTENTS: weakref.WeakKeyDictionary[nn.Module, str] = weakref.WeakKeyDictionary()


def bare_content(patcher: Any) -> str:
    """What the model is by the layers that other programs know too, without patches; found once a model."""
    if patcher.model not in _CONTENTS:
        _CONTENTS[patcher.model] = content_of(targets(patcher))
    return _CONTENTS[patcher.model]


def _schedule(sampling: Any) -> tuple[str, Any]:
    return "|".join(base.__name__ for base in type(sampling).__mro__), sampling.sigmas


def unpatched_weights(patcher: Any) -> Iterator[tuple[str, Tensor]]:
    """Every weight of a patcher's model by name, as it is without patches, whether they are merged just now or not."""
    for name, weight in patcher.model.named_parameters():
        hidden = unpatched(patcher, name)
        yield name, weight if hidden is None else hidden


def patches(patcher: Any) -> Iterator[tuple[str, Tensor]]:
    """Everything that other nodes have put onto the model's weights, in a fixed order."""
    for key, entries in sorted(patcher.patches.items()):
        for strength, change, strength_model, offset, _ in entries:
            about = f"{key}|{type(change).__name__}|{strength}|{strength_model}|{offset}"
            yield from ((about, tensor) for tensor in _tensors(getattr(change, "weights", change)))
    for injections in patcher.injections.values():  # their names are random
        for injection in injections:
            for part in getattr(injection, "parts", ()):
                yield from ((f"injected|{part.path}|{part.rows}", each) for each in (part.up, part.gain, part.down))


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from _tensors(item)


def fingerprint_modules(weights: Any) -> str:
    """SHA-256 over names, shapes and SAMPLES evenly strided values of each (name, weight), in half precision."""
    digest, named = hashlib.sha256(), [(name, weight, _parts(weight)) for name, weight in weights]
    samples = iter(_at_once([_sample(part) for _, _, parts in named for part in parts]))
    for name, weight, parts in named:
        digest.update(f"{name}{tuple(weight.shape)}".encode())
        for _ in parts:
            digest.update(next(samples).numpy().tobytes())
    return digest.hexdigest()


def _parts(weight: Any) -> list[Tensor]:
    """The tensors that hold a weight: numbers and scales of a quantised one; none of what the file lacks."""
    if hasattr(weight, "__tensor_flatten__"):
        return [getattr(weight, name) for name in weight.__tensor_flatten__()[0]]
    return [] if weight.is_meta else [weight]


def _sample(weight: Tensor) -> Tensor:
    flat = weight.detach().reshape(-1)
    return flat[:: max(1, flat.numel() // SAMPLES)][:SAMPLES].float().half()


def _at_once(samples: Sequence[Tensor]) -> list[Tensor]:
    """The same on the CPU, by one transfer from each device."""
    found = list(samples)
    for device in {sample.device for sample in samples}:
        places = [place for place, sample in enumerate(samples) if sample.device == device]
        sizes = [samples[place].numel() for place in places]
        moved = torch.cat([samples[place] for place in places]).cpu().split(sizes)
        for place, sample in zip(places, moved, strict=True):
            found[place] = sample
    return found


def _reader(module: nn.Module) -> Callable[[Tensor], Tensor] | None:
    """What gives the numbers that a scaled or quantised weight of this module stands for, by the host's own method."""
    convert = getattr(module, "convert_weight", None)
    if convert is None:
        return None
    return lambda weight: convert(weight.float() if type(weight) in (Tensor, nn.Parameter) else weight)


def unpatched(patcher: Any, key: str) -> Tensor | None:
    """W0 where the module does not hold it: the host keeps it aside while a LoRA is merged into the weight."""
    kept = patcher.backup.get(key)
    return None if kept is None else kept.weight


def _submodule(root: nn.Module, path: str) -> nn.Module | None:
    try:
        return root.get_submodule(path)
    except AttributeError:  # the last block of SD3 has no text output; the host's map lists it all the same
        return None


def _kohya(path: str) -> str:
    return "lora_unet_" + path.replace(".", "_")


def _check_inputs(model: Any) -> None:
    wanted, given = model.latent_format.latent_channels, model.model_config.unet_config.get("in_channels")
    if model.concat_keys or given != wanted:
        raise InputError(
            f"this model takes {given} channels where a text-to-image model takes {wanted}: it is an inpainting, edit"
            " or control model, which cannot be trained here; give the plain model"
        )
