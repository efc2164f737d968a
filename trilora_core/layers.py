"""Which layers of a model are adapted: the kind of every layer by its file stem, and the choice among them."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from types import MappingProxyType

from .config import LAYERS, LayerConfig
from .errors import InputError

__all__ = ["CHOICES", "DEFAULT", "KINDS", "choose", "choose_text", "kind_of", "kinds_of", "knows_text", "text_kinds"]

DEFAULT = LayerConfig()

KINDS = ("self", "cross", "joint", "ff", "proj", "conv")
"""self, cross: attention of a picture to itself and to its caption; joint: attention of both at once (SD3, Flux),
Flux's single blocks, which fuse it with their feed-forward part, included; ff: feed-forward of transformer blocks;
proj: the ways into and out of a U-Net's transformers; conv: residual blocks and the layers that change the size.
Of text encoders: self and ff, the two halves of each of their layers."""

CHOICES: dict[str, frozenset[str]] = {
    "attention": frozenset({"self", "cross", "joint"}),
    "self-attention": frozenset({"self", "joint"}),
    "attention+ff": frozenset({"self", "cross", "joint", "ff", "proj"}),  # in U-Nets what kohya's LoRA adapts
    "attention+ff+conv": frozenset(KINDS),  # in U-Nets what kohya's LoRA adapts when it is given a conv_dim
}
assert tuple(CHOICES) == LAYERS

_SHOWN = 3  # stems that an error names

Patterns = tuple[tuple[str, re.Pattern[str]], ...]

# Diffusers' spelling (SD 1.5) and the original one (SDXL); layers at the model's ends and its embeddings stay as they
# are, as in every trainer.
_UNET: Patterns = (
    ("self", re.compile(r"lora_unet_.+_transformer_blocks_\d+_attn1_to_(q|k|v|out_0)")),
    ("cross", re.compile(r"lora_unet_.+_transformer_blocks_\d+_attn2_to_(q|k|v|out_0)")),
    ("ff", re.compile(r"lora_unet_.+_transformer_blocks_\d+_ff_net_(0_proj|2)")),
    ("proj", re.compile(r"lora_unet_.+_\d+_proj_(in|out)")),
    ("conv", re.compile(r"lora_unet_.+_resnets_\d+_(conv1|conv2|conv_shortcut|time_emb_proj)")),
    ("conv", re.compile(r"lora_unet_.+_(down|up)samplers_\d+_conv")),
    ("conv", re.compile(r"lora_unet_.+_\d+_(in_layers_2|out_layers_3|skip_connection|emb_layers_1)")),
    ("conv", re.compile(r"lora_unet_(input_blocks_\d+_0_op|output_blocks_\d+_\d+_conv)")),
)
_SD3_BLOCK = r"transformer\.transformer_blocks\.\d+\."
_SD3: Patterns = (
    ("joint", re.compile(_SD3_BLOCK + r"attn\.(to_[qkv]|to_out\.0|add_[qkv]_proj|to_add_out)")),
    ("self", re.compile(_SD3_BLOCK + r"attn2\.(to_[qkv]|to_out\.0)")),  # SD 3.5 medium: the picture alone
    ("ff", re.compile(_SD3_BLOCK + r"ff(_context)?\.net\.(0\.proj|2)")),
)
_FLUX: Patterns = (
    ("joint", re.compile(r"lora_unet_double_blocks_\d+_(img|txt)_attn_(qkv|proj)")),
    ("joint", re.compile(r"lora_unet_single_blocks_\d+_linear[12]")),
    ("ff", re.compile(r"lora_unet_double_blocks_\d+_(img|txt)_mlp_[02]")),
    # diffusers' names, which cut q, k and v apart
    ("joint", re.compile(r"transformer\.(single_)?transformer_blocks\.\d+\.attn\.\w+(\.0)?")),
    ("joint", re.compile(r"transformer\.single_transformer_blocks\.\d+\.proj_(mlp|out)")),
    ("ff", re.compile(r"transformer\.transformer_blocks\.\d+\.ff(_context)?\.net\.(0\.proj|2)")),
)
# CLIP's layers; its embeddings and the projection of its pooled caption stay as they are.
_CLIP = r"text_model_encoder_layers_(?P<layer>\d+)_"
_TEXT_PREFIXES = {"sd15": ("lora_te",), "sdxl": ("lora_te1", "lora_te2")}
_PATTERNS: dict[str, Patterns] = {"sd15": _UNET, "sdxl": _UNET, "sd3": _SD3, "flux": _FLUX}


def kind_of(stem: str, architecture: str) -> str:
    """One of KINDS for a canonical stem, "" for a layer that no choice adapts."""
    return next((kind for kind, pattern in _PATTERNS[architecture] if pattern.fullmatch(stem)), "")


def kinds_of(stems: Iterable[str], architecture: str) -> dict[str, str]:
    """The kinds of those stems that some choice adapts, in their order."""
    found = {stem: kind_of(stem, architecture) for stem in stems}
    return {stem: kind for stem, kind in found.items() if kind}


def knows_text(architecture: str) -> bool:
    """Whether the text encoders of an architecture have layers under names known here: CLIP's, of SD 1.5 and SDXL."""
    return architecture in _TEXT_PREFIXES


def text_kinds(
    stems: Iterable[str], architecture: str, used: Mapping[str, int] = MappingProxyType({})
) -> dict[str, str]:
    """The kinds of those layers of text encoders that can be trained, in their order: "self" or "ff".

    `used` says of an encoder ("lora_te", "lora_te1", "lora_te2") how many of its first layers reach the conditioning,
    where it is not all of them: the rest would never get a gradient. Raises InputError for an architecture whose text
    encoders cannot be trained.
    """
    if not knows_text(architecture):
        raise InputError(
            f"text_encoder_rate is set, but the text encoders of this model ({architecture or 'unknown'}) cannot be"
            " trained, only those of SD 1.5 and SDXL; set it to 0"
        )
    known = re.compile(
        rf"(?P<encoder>{'|'.join(_TEXT_PREFIXES[architecture])})_{_CLIP}"
        r"((?P<self>self_attn_(q|k|v|out)_proj)|(?P<ff>mlp_fc[12]))"
    )
    found = {stem: known.fullmatch(stem) for stem in stems}
    return {
        stem: "self" if match["self"] else "ff"
        for stem, match in found.items()
        if match and int(match["layer"]) < used.get(match["encoder"], math.inf)
    }


def choose_text(kinds: Mapping[str, str], layers: LayerConfig) -> list[str]:
    """As `choose`, of what `text_kinds` found; the error says that it is the text encoders that nothing is left of."""
    chosen = _chosen(kinds, layers)
    if not kinds:
        raise InputError(
            "text_encoder_rate is set, but this model has no text encoder with a layer that can be trained; set it to 0"
        )
    if not chosen:
        raise InputError(
            f"text_encoder_rate is set, but the layer patterns leave no layer of the text encoders: {_given(layers)}."
            f" {_offer(_offered(kinds, layers), layers)}. Add a pattern that matches such names, such as *text_model*,"
            " or set text_encoder_rate to 0"
        )
    return chosen


def choose(kinds: Mapping[str, str], layers: LayerConfig) -> list[str]:
    """The stems to adapt, in the order of `kinds` (canonical stem -> kind); InputError when none is left.

    Case counts in patterns, on every system.
    """
    chosen = _chosen(kinds, layers)
    if not chosen:
        raise InputError(_nothing_left(_offered(kinds, layers), layers))
    return chosen


def _offered(kinds: Mapping[str, str], layers: LayerConfig) -> list[str]:
    return [stem for stem, kind in kinds.items() if kind in CHOICES[layers.which]]


def _chosen(kinds: Mapping[str, str], layers: LayerConfig) -> list[str]:
    return [
        stem
        for stem in _offered(kinds, layers)
        if (not layers.include or _matches(stem, layers.include)) and not _matches(stem, layers.exclude)
    ]


def _matches(stem: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(stem, pattern) for pattern in patterns)


def _nothing_left(offered: list[str], layers: LayerConfig) -> str:
    if not offered:
        return f"the model has no layer of the choice {layers.which!r}; known choices: {', '.join(LAYERS)}"
    return (
        f"the layer patterns leave nothing to train: {_given(layers)}. {_offer(offered, layers)}. Write patterns that"
        " match such names, with * for any part: *attn2*"
    )


def _given(layers: LayerConfig) -> str:
    return "; ".join(
        f"{name} {', '.join(patterns)}"
        for name, patterns in (("include", layers.include), ("exclude", layers.exclude))
        if patterns
    )


def _offer(offered: list[str], layers: LayerConfig) -> str:
    some = f"{', '.join(offered[:_SHOWN])}{' …' if len(offered) > _SHOWN else ''}"
    return f"Of {layers.which} this model has {len(offered)} layers: {some}"
