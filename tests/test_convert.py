"""Spellings: every layer under the other name, no bit changed, and read by those who wrote the other spelling."""

from __future__ import annotations

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from tests.adapters import dense, make_adapter, relative_error
from trilora_core.convert import respell
from trilora_core.errors import InputError
from trilora_core.fileformat import Adapter, read_adapter, stored_dtype, write_adapter

CLIP = "text_model.encoder.layers"
TEXT = {
    "sd15": {
        "lora_te_text_model_encoder_layers_0_self_attn_q_proj": f"text_encoder.{CLIP}.0.self_attn.q_proj",
        "lora_te_text_model_encoder_layers_11_mlp_fc1": f"text_encoder.{CLIP}.11.mlp.fc1",
    },
    "sdxl": {
        "lora_te1_text_model_encoder_layers_0_self_attn_out_proj": f"text_encoder.{CLIP}.0.self_attn.out_proj",
        "lora_te2_text_model_encoder_layers_31_self_attn_k_proj": f"text_encoder_2.{CLIP}.31.self_attn.k_proj",
        "lora_te2_text_model_encoder_layers_31_mlp_fc2": f"text_encoder_2.{CLIP}.31.mlp.fc2",
        "lora_te2_text_projection": "text_encoder_2.text_projection",
    },
}


@pytest.mark.parametrize("architecture", ["sd15", "sdxl"])
def test_there_and_back_changes_no_bit(tmp_path, architecture: str) -> None:
    pytest.importorskip("diffusers")
    from tests.test_fileformat_diffusers import ATTENTION, OTHERS, adapter_for, tiny_unet

    adapter, modules = adapter_for(architecture, tiny_unet(architecture), ATTENTION + OTHERS)
    adapter.layers.update(make_adapter(TEXT[architecture], rank=5).layers)
    kohya, peft, back = (tmp_path / f"{name}.safetensors" for name in ("kohya", "peft", "back"))
    write_adapter(kohya, adapter)
    assert stored_dtype(kohya) == torch.float16
    write_adapter(peft, respell(read_adapter(kohya), "peft"))
    write_adapter(back, respell(read_adapter(peft), "kohya"))
    first, second, third = load_file(kohya), load_file(peft), load_file(back)
    assert first.keys() == third.keys() and all(torch.equal(first[key], third[key]) for key in first)
    wanted = [*(f"unet.{path}" for path in modules.values()), *TEXT[architecture].values()]
    assert set(second) == {f"{name}.lora_{part}.weight" for name in wanted for part in "AB"}
    with safe_open(kohya, "pt") as a, safe_open(back, "pt") as b:
        assert a.metadata()["sshs_model_hash"] == b.metadata()["sshs_model_hash"]


@pytest.mark.parametrize("architecture", ["sd15", "sdxl"])
def test_diffusers_loads_the_peft_spelling(tmp_path, architecture: str) -> None:
    pytest.importorskip("diffusers")
    pytest.importorskip("peft")
    from tests.test_fileformat_diffusers import ATTENTION, OTHERS, adapter_for, pipeline, tiny_unet

    unet = tiny_unet(architecture)
    adapter, modules = adapter_for(architecture, unet, ATTENTION + OTHERS)
    write_adapter(tmp_path / "a.safetensors", respell(adapter, "peft"))
    before = {path: unet.get_submodule(path).weight.clone() for path in modules.values()}
    pipe = pipeline(architecture, unet)
    pipe.load_lora_weights(tmp_path, weight_name="a.safetensors")
    pipe.fuse_lora()
    pipe.unload_lora_weights()
    for stem, path in modules.items():
        change = (unet.get_submodule(path).weight - before[path]).flatten(1)
        assert relative_error(change, dense(adapter.layers[stem])) <= 1e-3, stem


def test_sd3_is_dotted_already_and_flux_stays() -> None:
    sd3 = make_adapter(["transformer.transformer_blocks.0.attn.to_q"], trilora__architecture="sd3")
    assert list(respell(sd3, "peft").layers) == ["transformer.transformer_blocks.0.attn.to_q"]
    with pytest.raises(InputError, match="no one layer of kohya"):
        respell(sd3, "kohya")
    flux = make_adapter(["lora_unet_double_blocks_0_img_attn_qkv"])
    assert list(respell(flux, "kohya").layers) == ["lora_unet_double_blocks_0_img_attn_qkv"]
    with pytest.raises(InputError, match="no one layer of PEFT"):
        respell(flux, "peft")


def test_bad_input_is_named() -> None:
    with pytest.raises(InputError, match="known: kohya, peft"):
        respell(Adapter({}, {}), "civitai")
