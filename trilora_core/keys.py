"""Names of layers and tensors in LoRA files: every spelling in, one canonical stem out.

The canonical stem is the file stem of the native trainers: `lora_unet_down_blocks_…` (SD1.5, diffusers spelling),
`lora_unet_input_blocks_…` (SDXL, sgm spelling), `lora_unet_double_blocks_…` (Flux, whole fused layers) and
`transformer.transformer_blocks.…` (SD3, dotted). Only strings here: no tensors, no model.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

__all__ = [
    "ARCHITECTURES",
    "TensorName",
    "canonical_stem",
    "foreign_layer",
    "guess_architecture",
    "is_dotted",
    "is_text",
    "parse_key",
    "stem_of_diffusers_module",
]

ARCHITECTURES = ("sd15", "sdxl", "sd3", "flux")


class TensorName(NamedTuple):
    """A tensor key split into the layer's stem as spelled in the file and its part: "down", "up" or "alpha"."""

    stem: str
    part: str


# Endings of tensor keys, longest spelling first: `_lora.down.weight` must not be read as `.lora.down.weight`.
_PART_ENDINGS: tuple[tuple[re.Pattern[str], dict[str, str]], ...] = (
    (re.compile(r"\.lora_(down|up)\.weight$"), {"down": "down", "up": "up"}),
    (re.compile(r"\.lora_(A|B)(?:\.[^.]+)?\.weight$"), {"A": "down", "B": "up"}),  # PEFT, with or without adapter name
    (re.compile(r"\.lora_(A|B)$"), {"A": "down", "B": "up"}),
    (re.compile(r"\.lora_linear_layer\.(down|up)\.weight$"), {"down": "down", "up": "up"}),
    (re.compile(r"[._]lora\.(down|up)\.weight$"), {"down": "down", "up": "up"}),  # diffusers before PEFT
    (re.compile(r"\.(alpha)$"), {"alpha": "alpha"}),
)

_FOREIGN_KINDS: tuple[tuple[re.Pattern[str], str], ...] = (
    (
        re.compile(r"^(model|first_stage_model|cond_stage_model|conditioner|vae|decoder|encoder)\."),
        "base model weights",
    ),
    (re.compile(r"\.hada_[wt]\d"), "LoHa"),
    (re.compile(r"\.lokr_[wt]\d"), "LoKr"),
    (re.compile(r"\.(dora_scale|lora_magnitude_vector)(\.|$)"), "DoRA"),
    (re.compile(r"\.lora_mid\.weight$"), "LoRA with a middle (Tucker) convolution"),
    (re.compile(r"\.(oft_blocks|oft_diag|oft_R)(\.|$)"), "OFT"),
    (re.compile(r"\.boft_"), "BOFT"),
    (re.compile(r"\.[ab][12]\.weight$"), "GLoRA"),
    (re.compile(r"\.(on_input|ia3_l)(\.|$)"), "IA3"),
    (re.compile(r"\.(w_norm|b_norm)$"), "trained norm"),
    (re.compile(r"\.(diff_b|lora_(B|up)(\.[^.]+)?\.bias|bias)$"), "trained bias"),
    (re.compile(r"\.(diff|set_weight|reshape_weight)$"), "whole-weight difference"),
    (re.compile(r"^(bundle_emb|emb_params|clip_[lgh]$|string_to_param)"), "textual inversion embedding"),
)

_COMPONENTS: tuple[tuple[str, str], ...] = (
    ("unet.", "unet"),
    ("transformer.", "transformer"),
    ("text_encoder.", "te1"),
    ("text_encoder_2.", "te2"),
    ("text_encoder_3.", "te3"),
    ("diffusion_model.", "native"),
)
# First words of module paths that come without a component, as PEFT itself saves them.
_BARE_ROOTS: tuple[tuple[tuple[str, ...], str], ...] = (
    (("down_blocks.", "mid_block.", "up_blocks.", "time_embedding.", "add_embedding."), "unet"),
    (("transformer_blocks.", "single_transformer_blocks."), "transformer"),
    (("text_model.",), "te1"),
)

_RESNET_TO_SGM = {
    "conv1": "in_layers_2",
    "conv2": "out_layers_3",
    "time_emb_proj": "emb_layers_1",
    "conv_shortcut": "skip_connection",
}
_RESNET_FROM_SGM = {sgm: name for name, sgm in _RESNET_TO_SGM.items()}
_BASIC_TO_SGM = {
    "conv_in": "input_blocks_0_0",
    "conv_out": "out_2",
    "time_embedding_linear_1": "time_embed_0",
    "time_embedding_linear_2": "time_embed_2",
    "add_embedding_linear_1": "label_emb_0_0",
    "add_embedding_linear_2": "label_emb_0_2",
}
_BASIC_FROM_SGM = {sgm: name for name, sgm in _BASIC_TO_SGM.items()}
_LEGACY_CLIP = {"to_q": "q_proj", "to_k": "k_proj", "to_v": "v_proj", "to_out": "out_proj", "to_out_0": "out_proj"}

_SIDE_BLOCK = re.compile(r"(down|up)_blocks_(\d+)_(resnets|attentions|downsamplers|upsamplers)_(\d+)_(.+)")
_MID_BLOCK = re.compile(r"mid_block_(resnets|attentions)_(\d+)_(.+)")
_SGM_SIDE = re.compile(r"(input|output)_blocks_(\d+)_(\d+)_(.+)")
_SGM_MID = re.compile(r"middle_block_(\d+)_(.+)")


def parse_key(key: str) -> TensorName | None:
    """Split a tensor key of any supported spelling; None when it is no part of a plain LoRA."""
    for pattern, parts in _PART_ENDINGS:
        match = pattern.search(key)
        if match:
            return TensorName(key[: match.start()], parts[match.group(1)])
    return None


def foreign_layer(key: str) -> tuple[str, str]:
    """(kind, layer) of a tensor that is no part of a plain LoRA, such as ("LoHa", "lora_unet_mid_block_…")."""
    for pattern, kind in _FOREIGN_KINDS:
        match = pattern.search(key)
        if match:
            return kind, key[: match.start()] or key
    return "unknown tensors", key


def is_text(stem: str) -> bool:
    """True for a canonical stem of a text encoder's layer."""
    return stem.startswith("lora_te")


def is_dotted(stem: str) -> bool:
    """Whether a stem is written as lora_A/lora_B without alpha (dotted module path) instead of lora_down/lora_up."""
    return not stem.startswith("lora_")


def canonical_stem(stem: str, architecture: str, *, layers_per_block: int = 2) -> str:
    """Bring a stem as spelled in a file to the canonical stem of its architecture.

    `architecture` is one of ARCHITECTURES or "" (unknown): what is not known for sure stays as it is, because the
    host's own key map may still know it. `layers_per_block` is the U-Net's number of resnets per block.
    """
    if stem.startswith("lora_"):
        stem = stem.replace("lora_unet__", "lora_unet_", 1)  # as some files for Wan have it
        return _respell(stem, architecture, layers_per_block)
    component, path = _split_component(stem)
    if component == "unet":
        return _respell("lora_unet_" + _flat(path), architecture, layers_per_block)
    if component == "native" and architecture in ARCHITECTURES and not path.endswith(".linear1_qkv"):
        return _respell("lora_unet_" + _flat(path), architecture, layers_per_block)
    if component == "transformer" and architecture in ("sd3", "flux"):
        return "transformer." + path
    if component in ("te1", "te2") and architecture in ("sd15", "sdxl", ""):
        return _respell(f"lora_{component}_" + _flat_clip(path), architecture or "sd15", layers_per_block)
    if component.startswith("te"):
        return {"te1": "text_encoder.", "te2": "text_encoder_2.", "te3": "text_encoder_3."}[component] + path
    return stem


def stem_of_diffusers_module(architecture: str, path: str, *, layers_per_block: int = 2) -> str:
    """Canonical stem of a diffusers module.

    `path` is the module's name within the denoiser, or within a text encoder when it begins with `text_encoder.` or
    `text_encoder_2.`. Flux and SD3 keep diffusers' own dotted names (q, k and v apart).
    """
    component, inner = _split_component(path)
    if not component:
        component = "transformer" if architecture in ("sd3", "flux") else "unet"
    if component.startswith("te") and inner.startswith("encoder.layers."):
        inner = "text_model." + inner  # transformers 5 dropped the wrapper module, files did not
    prefix = {name: prefix for prefix, name in _COMPONENTS}[component]
    return canonical_stem(prefix + inner, architecture, layers_per_block=layers_per_block)


def guess_architecture(
    stems: Iterable[str], metadata: Mapping[str, str], widths: Mapping[str, int] | None = None
) -> str:
    """Tell "sd15", "sdxl", "sd3" or "flux" from a file's stems (any spelling) and metadata, "" when it cannot be told.

    What the metadata says wins. `widths` (stem -> input features) settles files whose names fit two models.
    """
    said = _architecture_in_metadata(metadata)
    if said is not None:
        return said
    flat = {_flat(stem): (widths or {}).get(stem, 0) for stem in stems}
    for guess in (_guess_transformer, _guess_unet):
        found = guess(flat)
        if found:
            return found
    return ""


_METADATA_KEYS = ("trilora.architecture", "modelspec.architecture", "ss_base_model_version")
_METADATA_PREFIXES: tuple[tuple[str, str], ...] = (
    ("stable-diffusion-v1", "sd15"),
    ("stable-diffusion-xl", "sdxl"),
    ("stable-diffusion-3", "sd3"),
    ("flux-1", "flux"),
    ("sdxl", "sdxl"),
    ("sd_v1", "sd15"),
    ("sd_1", "sd15"),
    ("sd15", "sd15"),
    ("sd1.", "sd15"),
    ("sd3", "sd3"),
    ("flux1", "flux"),
)
# Models that share names with one of ours but are another: never guessed from the names.
_METADATA_OTHERS = ("sd_v2", "sd_2", "sd2", "stable-diffusion-v2", "chroma", "flux2", "hunyuan", "wan", "qwen")


def _architecture_in_metadata(metadata: Mapping[str, str]) -> str | None:
    for key in _METADATA_KEYS:
        value = metadata.get(key, "").lower()
        if value in (*ARCHITECTURES, "toy"):
            return value
        for prefix, architecture in _METADATA_PREFIXES:
            if value.startswith(prefix):
                return architecture
        if value.startswith(_METADATA_OTHERS):
            return ""
    return None


def _guess_transformer(flat: Mapping[str, int]) -> str:
    def some(pattern: str) -> bool:
        return any(re.search(pattern, stem) for stem in flat)

    if some("joint_blocks_") or some("^transformer_transformer_blocks_.*_attn2_"):
        return "sd3"
    if some("^(transformer_)?(double|single)_blocks_") or some("_(img|txt)_mlp_fc"):
        return ""  # HunyuanVideo shares Flux's block names
    if some("(double|single)_blocks_|single_transformer_blocks_"):
        return "flux"
    width = {w for stem, w in flat.items() if re.search("transformer_blocks_.*_attn_to_[qkv]$", stem)}
    return "sd3" if width & {1536, 2432} else ""


def _guess_unet(flat: Mapping[str, int]) -> str:
    def some(pattern: str) -> bool:
        return any(re.search(pattern, stem) for stem in flat)

    if not some("(down|up|input|output)_blocks_|mid_block|middle_block|^(lora_te|text_)"):
        return ""
    widths = {width for stem, width in flat.items() if "attn2_to_k" in stem or "attn2_to_v" in stem}
    for width, architecture in ((768, "sd15"), (1024, ""), (2048, "sdxl")):  # width of the caption's tokens
        if width in widths:
            return architecture
    if some("^(lora_te2|text_encoder_2)_text_model|attentions_\\d+_transformer_blocks_[1-9]|label_emb|add_embedding"):
        return "sdxl"
    if some("_(in|out)put_blocks_\\d+_1_transformer_blocks_[1-9]|middle_block_1_transformer_blocks_[1-9]"):
        return "sdxl"
    if some("^lora_te_text_model|down_blocks_0_attentions|(down|up)_blocks_3_"):
        return "sd15"
    if some("input_blocks_(1_1|2_1|9|10|11)_|output_blocks_(9|10|11)_"):
        return "sd15"
    return ""


def _split_component(stem: str) -> tuple[str, str]:
    """("unet", path below it) for a dotted stem; ("", stem) when its first words are not known."""
    component, path = next(((name, stem[len(p) :]) for p, name in _COMPONENTS if stem.startswith(p)), ("", stem))
    bare = path.removeprefix("base_model.model.")
    if component:
        return component, _tidy(bare)
    component = next((name for roots, name in _BARE_ROOTS if bare.startswith(roots)), "")
    return (component, _tidy(bare)) if component else ("", stem)


def _tidy(path: str) -> str:
    """Drop what diffusers before PEFT added: `.processor`, and the missing index of `to_out.0`."""
    path = path.replace(".processor.", ".")
    return path + ".0" if path.endswith(".to_out") and ".self_attn." not in path else path


def _flat(path: str) -> str:
    return path.replace(".", "_")


def _flat_clip(path: str) -> str:
    head, _, last = path.rpartition(".")
    return _flat(f"{head}.{_LEGACY_CLIP.get(last, last)}" if head.endswith("self_attn") else path)


def _respell(stem: str, architecture: str, layers: int) -> str:
    """Bring an underscored stem to the spelling of its architecture; others stay."""
    if stem.startswith("lora_unet_"):
        path = stem.removeprefix("lora_unet_")
        if architecture == "sdxl":
            return "lora_unet_" + _to_sgm(path, layers)
        return "lora_unet_" + _from_sgm(path, layers) if architecture == "sd15" else stem
    if architecture == "sd15" and stem.startswith("lora_te1_"):
        return "lora_te_" + stem.removeprefix("lora_te1_")
    if architecture == "sdxl" and stem.startswith("lora_te_"):
        return "lora_te1_" + stem.removeprefix("lora_te_")
    return stem


def _to_sgm(path: str, layers: int) -> str:
    """`down_blocks_1_attentions_0_…` -> `input_blocks_4_1_…` (SDXL: every up block that grows has attentions)."""
    if path in _BASIC_TO_SGM:
        return _BASIC_TO_SGM[path]
    if mid := _MID_BLOCK.fullmatch(path):
        kind, index, rest = mid.groups()
        place = "1" if kind == "attentions" else str(2 * int(index))
        return f"middle_block_{place}_{_inner_to_sgm(kind, rest)}"
    side = _SIDE_BLOCK.fullmatch(path)
    if not side:
        return path
    way, block, kind, index, rest = side.groups()
    first = int(block) * (layers + 1)
    if kind == "downsamplers":
        return f"input_blocks_{first + layers + 1}_0_op"
    if kind == "upsamplers":
        return f"output_blocks_{first + layers}_2_conv"
    name = f"input_blocks_{first + int(index) + 1}" if way == "down" else f"output_blocks_{first + int(index)}"
    return f"{name}_{int(kind == 'attentions')}_{_inner_to_sgm(kind, rest)}"


def _inner_to_sgm(kind: str, rest: str) -> str:
    return _RESNET_TO_SGM.get(rest, rest) if kind == "resnets" else rest


def _from_sgm(path: str, layers: int) -> str:
    """`input_blocks_4_1_…` -> `down_blocks_1_attentions_0_…`."""
    if path in _BASIC_FROM_SGM:
        return _BASIC_FROM_SGM[path]
    if mid := _SGM_MID.fullmatch(path):
        place, rest = mid.groups()
        kind = "attentions_0" if place == "1" else f"resnets_{int(place) // 2}"
        return f"mid_block_{kind}_{_RESNET_FROM_SGM.get(rest, rest)}"
    side = _SGM_SIDE.fullmatch(path)
    if not side:
        return path
    way, number, place, rest = side.groups()
    block, index = divmod(int(number) - (way == "input"), layers + 1)
    name = f"{'down' if way == 'input' else 'up'}_blocks_{block}"
    if rest in ("op", "conv"):
        return f"{name}_downsamplers_0_conv" if rest == "op" else f"{name}_upsamplers_0_conv"
    return f"{name}_{'resnets' if place == '0' else 'attentions'}_{index}_{_RESNET_FROM_SGM.get(rest, rest)}"
