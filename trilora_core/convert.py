"""One adapter in the spelling of other programs: kohya's underscored names or PEFT's dotted ones. Only names change."""

from __future__ import annotations

import re
from collections.abc import Iterable

from .errors import InputError
from .fileformat import Adapter
from .keys import canonical_stem, is_dotted
from .metadata import architecture_of

__all__ = ["SPELLINGS", "respell"]

SPELLINGS = ("kohya", "peft")

# Names of modules that hold an underscore themselves; every other underscore in a flat stem stands for a dot.
_WORDS = (
    "down_blocks|up_blocks|mid_block|transformer_blocks|time_emb_proj|time_embedding|add_embedding|linear_[12]"
    "|conv_shortcut|conv_in|conv_out|proj_in|proj_out|to_[qkv]|to_out|text_model|self_attn|[qkv]_proj|out_proj|text_projection"
)
_WORD = re.compile(rf"({_WORDS})(?=_|$)|([^_]+)")
_PREFIXES = (
    ("lora_unet_", "unet."),
    ("lora_te_", "text_encoder."),
    ("lora_te1_", "text_encoder."),
    ("lora_te2_", "text_encoder_2."),
)


def respell(adapter: Adapter, spelling: str) -> Adapter:
    """The same layers under the names of `spelling`, one of SPELLINGS; no number changes.

    kohya: `lora_unet_…` with lora_down, lora_up and alpha. peft: the modules of diffusers with lora_A and lora_B, as
    `load_lora_weights` and PEFT have them. Raises InputError for an unknown spelling, and for models whose layers the
    two cut differently: Flux and SD3 fuse q, k and v in one of them.
    """
    if spelling not in SPELLINGS:
        raise InputError(f"spelling is {spelling!r}; known: {', '.join(SPELLINGS)}")
    architecture = architecture_of(adapter)
    stems = {canonical_stem(stem, architecture): layer for stem, layer in adapter.layers.items()}
    if spelling == "peft":
        layers = {_dotted(stem, architecture): layer for stem, layer in stems.items()}
    else:
        _check_flat(stems, architecture)
        layers = stems
    return Adapter(layers, adapter.metadata)


def _dotted(stem: str, architecture: str) -> str:
    """`lora_unet_input_blocks_4_1_…_to_q` -> `unet.down_blocks.1.attentions.0.….to_q`."""
    if is_dotted(stem):
        return stem
    prefix, component = next(((ours, theirs) for ours, theirs in _PREFIXES if stem.startswith(ours)), ("", ""))
    # SD 1.5 names U-Net layers as diffusers does
    flat = canonical_stem(stem, "sd15").removeprefix(prefix) if prefix == "lora_unet_" else stem.removeprefix(prefix)
    path = ".".join(match.group() for match in _WORD.finditer(flat))
    if not prefix or architecture not in ("sd15", "sdxl", "") or path.replace(".", "_") != flat:
        raise InputError(
            f"{stem} of {architecture or 'an unknown model'} has no one layer of PEFT's: Flux and SD3 cut q, k and v"
            " differently there; diffusers and ComfyUI read the file as it is"
        )
    return component + path


def _check_flat(stems: Iterable[str], architecture: str) -> None:
    dotted = [stem for stem in stems if is_dotted(stem)]
    if dotted:
        raise InputError(
            f"{dotted[0]} of {architecture or 'an unknown model'} has no one layer of kohya's, which fuses q, k and v"
            " of SD3 and Flux; ComfyUI, diffusers and PEFT read the file as it is"
        )
