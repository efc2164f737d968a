"""The configuration that a single checkpoint file leaves out, so that diffusers can read it without network.

A single file holds weights only. What diffusers would fetch, the shapes of SD 1.5 and SDXL, the noise schedule and
CLIP's tokenizer, is written here into a folder. CLIP's byte-pair merges are not ours to ship: they are looked for on
this machine, and its vocabulary follows from them.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from .errors import InputError

__all__ = ["clip_merges", "write_config_folder", "write_tokenizer"]

_TOKENIZER_REPO = "openai/clip-vit-large-patch14"  # whose tokenizer SD 1.5 and SDXL use
_UNET = "model.diffusion_model."
_CROSS_ATTENTION = "transformer_blocks.0.attn2.to_k.weight"

_CLIP_L: dict[str, Any] = {
    "architectures": ["CLIPTextModel"],
    "model_type": "clip_text_model",
    "vocab_size": 49408,
    "max_position_embeddings": 77,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "projection_dim": 768,
    "hidden_act": "quick_gelu",
    "bos_token_id": 0,  # the value of the published files, which makes transformers pool at the highest token
    "eos_token_id": 2,
    "pad_token_id": 1,
}
_CLIP_G = _CLIP_L | {
    "architectures": ["CLIPTextModelWithProjection"],
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_hidden_layers": 32,
    "num_attention_heads": 20,
    "projection_dim": 1280,
    "hidden_act": "gelu",
}
_VAE: dict[str, Any] = {
    "_class_name": "AutoencoderKL",
    "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "layers_per_block": 2,
    "latent_channels": 4,
    "sample_size": 512,
    "scaling_factor": 0.18215,
}
_UNET_SD15: dict[str, Any] = {
    "_class_name": "UNet2DConditionModel",
    "sample_size": 64,
    "layers_per_block": 2,  # diffusers' reader of single files knows no defaults
    "block_out_channels": [320, 640, 1280, 1280],
    "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
    "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
    "attention_head_dim": 8,
    "cross_attention_dim": 768,
}
_UNET_SDXL: dict[str, Any] = {
    "_class_name": "UNet2DConditionModel",
    "sample_size": 128,
    "layers_per_block": 2,
    "block_out_channels": [320, 640, 1280],
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    "attention_head_dim": [5, 10, 20],
    "transformer_layers_per_block": [1, 2, 10],
    "cross_attention_dim": 2048,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
_SCHEDULER: dict[str, Any] = {
    "_class_name": "DDIMScheduler",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
}

_SD15: dict[str, dict[str, Any]] = {"unet": _UNET_SD15, "vae": _VAE, "text_encoder": _CLIP_L}
_SDXL: dict[str, dict[str, Any]] = {
    "unet": _UNET_SDXL,
    "vae": _VAE | {"sample_size": 1024, "scaling_factor": 0.13025, "force_upcast": True},
    "text_encoder": _CLIP_L,
    "text_encoder_2": _CLIP_G,
}


def write_config_folder(checkpoint: Path, folder: Path) -> None:
    """Write the diffusers configuration that fits a single SD 1.5 or SDXL checkpoint into an empty folder.

    Raises InputError for a file that is damaged, holds no U-Net, or is of another model.
    """
    shapes, metadata = _read_header(checkpoint)
    sdxl = _is_sdxl(checkpoint, shapes)
    components = _SDXL if sdxl else _SD15
    for name, values in components.items():
        _write_json(folder / name / "config.json", values)
    _write_json(folder / "scheduler" / "scheduler_config.json", _SCHEDULER | _prediction(shapes, metadata))
    merges = clip_merges(checkpoint)
    write_tokenizer(folder / "tokenizer", merges)
    if sdxl:
        write_tokenizer(folder / "tokenizer_2", merges, pad="!")
    _write_json(folder / "model_index.json", _index(sdxl))


def clip_merges(checkpoint: Path) -> list[str]:
    """CLIP's byte-pair merges, from the first place on this machine that has them; raises InputError when none has.

    The places: the folder CLIP_TOKENIZER, the cache of huggingface_hub, a ComfyUI at COMFYUI_PATH or ~/comfy/ComfyUI.
    """
    for path in _merges_places():
        if path.is_file():
            lines = path.read_text(encoding="utf-8").splitlines()
            return [line for line in lines if line and not line.startswith("#version")]
    raise InputError(
        f"model {checkpoint} is a single file, which holds no tokenizer, and none was found on this machine: set"
        " CLIP_TOKENIZER to a folder with CLIP's merges.txt, or COMFYUI_PATH to a ComfyUI, or give a diffusers folder"
    )


def _merges_places() -> list[Path]:
    from huggingface_hub import try_to_load_from_cache

    named = os.environ.get("CLIP_TOKENIZER")
    cached = try_to_load_from_cache(_TOKENIZER_REPO, "merges.txt")
    host = Path(os.environ.get("COMFYUI_PATH") or Path.home() / "comfy" / "ComfyUI")
    places = [Path(named) / "merges.txt"] if named else []
    places += [Path(cached)] if isinstance(cached, str) else []
    return [*places, host / "comfy" / "sd1_tokenizer" / "merges.txt"]


def write_tokenizer(folder: Path, merges: Sequence[str], *, length: int = 77, pad: str = "<|endoftext|>") -> None:
    """Write a CLIP tokenizer: every byte, every byte that ends a word, the merges, the two marks, in this order."""
    letters = _byte_letters()
    words = [*letters, *(letter + "</w>" for letter in letters), *(merge.replace(" ", "") for merge in merges)]
    words += ["<|startoftext|>", "<|endoftext|>"]
    _write_json(folder / "vocab.json", {word: index for index, word in enumerate(words)})
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]), encoding="utf-8")
    marks = {"bos_token": words[-2], "eos_token": words[-1], "unk_token": words[-1], "pad_token": pad}
    _write_json(folder / "special_tokens_map.json", marks)
    settings = {"tokenizer_class": "CLIPTokenizer", "model_max_length": length, "do_lower_case": True}
    _write_json(folder / "tokenizer_config.json", settings | marks)


def _byte_letters() -> list[str]:
    """A printable letter for each of the 256 bytes, as in GPT-2's byte-level vocabulary: printable ones first."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    return [chr(byte) for byte in printable] + [chr(256 + index) for index in range(256 - len(printable))]


def _read_header(checkpoint: Path) -> tuple[dict[str, tuple[int, ...]], dict[str, str]]:
    try:
        with safe_open(checkpoint, framework="pt") as file:
            names = file.keys()
            return {name: tuple(file.get_slice(name).get_shape()) for name in names}, file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise InputError(f"model {checkpoint} is not a whole safetensors file ({error}); copy it again") from error


def _is_sdxl(checkpoint: Path, shapes: dict[str, tuple[int, ...]]) -> bool:
    first = shapes.get(_UNET + "input_blocks.0.0.weight")
    if first is None:
        raise InputError(
            f"model {checkpoint} holds no U-Net under {_UNET}; "
            "give a full SD 1.5 or SDXL checkpoint, or a diffusers folder"
        )
    if first[1] != 4:
        raise InputError(
            f"model {checkpoint} takes {first[1]} channels (inpainting?); wanted a text-to-image model with 4"
        )
    width = next((shape[1] for name, shape in shapes.items() if name.endswith(_CROSS_ATTENTION)), 0)
    if width not in (768, 2048):
        raise InputError(
            f"model {checkpoint} has captions of width {width}; known: 768 (SD 1.5) and 2048 (SDXL); "
            "give another model, or a diffusers folder"
        )
    return width == 2048


def _prediction(shapes: dict[str, tuple[int, ...]], metadata: dict[str, str]) -> dict[str, Any]:
    """What the network predicts: v where the file says so, by marker tensors or metadata, else the noise."""
    said = metadata.get("modelspec.prediction_type", "").lower()
    if "v_pred" not in shapes and said not in ("v", "v_prediction"):
        return {"prediction_type": "epsilon"}
    zero = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"} if "ztsnr" in shapes else {}
    return {"prediction_type": "v_prediction", **zero}


def _index(sdxl: bool) -> dict[str, Any]:
    index: dict[str, Any] = {
        "_class_name": "StableDiffusionXLPipeline" if sdxl else "StableDiffusionPipeline",
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
        "scheduler": ["diffusers", "DDIMScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
    }
    if sdxl:
        more = {"text_encoder_2": "CLIPTextModelWithProjection", "tokenizer_2": "CLIPTokenizer"}
        return index | {name: ["transformers", kind] for name, kind in more.items()}
    return index | {"safety_checker": [None, None], "feature_extractor": [None, None], "requires_safety_checker": False}


def _write_json(path: Path, values: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(values, ensure_ascii=False), encoding="utf-8")
