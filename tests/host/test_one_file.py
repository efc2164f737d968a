"""One saved file, three readers: our Apply, the native LoraLoader and diffusers give the same ΔW in every layer."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.adapters import dense, relative_error
from trilora_core.branch import Target
from trilora_core.config import LayerConfig
from trilora_core.content import content_of
from trilora_core.fileformat import Adapter, read_adapter, write_adapter
from trilora_core.keys import stem_of_diffusers_module
from trilora_core.layers import choose, kinds_of

from .discovery import Host
from .in_process import run_in_host

diffusers = pytest.importorskip("diffusers")
pytest.importorskip("peft")

FP16 = 1e-3  # relative: what half precision in the file costs
LAYOUT = {
    "sd15": {"block_out_channels": (32,) * 4, "attention_head_dim": 8},
    "sdxl": {
        "block_out_channels": (64,) * 3,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "transformer_layers_per_block": (1, 2, 3),
        "attention_head_dim": (4, 4, 4),
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 56,
    },
}
# attention, feed-forward, ways in and out, residual blocks, samplers: everything that a choice of layers can adapt
LAYERS = {"sd15": 276, "sdxl": 366}


@pytest.mark.parametrize("kind", list(LAYOUT))
def test_three_readers_one_change(host: Host, kind: str, tmp_path: Path) -> None:
    from tests.test_fileformat_diffusers import ATTENTION, OTHERS, adapter_for, pipeline

    torch.manual_seed(0)
    unet = diffusers.UNet2DConditionModel(
        sample_size=8, layers_per_block=2, cross_attention_dim=24, norm_num_groups=32, **LAYOUT[kind]
    )
    adapter, modules = adapter_for(kind, unet, ATTENTION + OTHERS)
    assert len(adapter.layers) == len(kinds_of(adapter.layers, kind)) == LAYERS[kind]
    file = tmp_path / "one.safetensors"
    write_adapter(file, Adapter(adapter.layers, {}), dtype=torch.float16)
    paths = {way: str(tmp_path / f"{way}.safetensors") for way in ("ours", "native")}
    frozen = {stem: Target(unet.get_submodule(path)) for stem, path in modules.items()}
    frozen = {stem: frozen[stem] for stem in choose(kinds_of(frozen, kind), LayerConfig())}
    weights = tmp_path / "weights.safetensors"
    save_file({stem: target.base_weight().contiguous() for stem, target in frozen.items()}, weights)
    given = {"kind": kind, "file": str(file), "weights": str(weights), **paths}
    counts = run_in_host(host, "one_file", given)
    assert counts.pop("content") == content_of(frozen), "equal weights are one model, in diffusers and in ComfyUI"
    assert counts == {"ours": LAYERS[kind], "native": LAYERS[kind]}
    read = {way: load_file(path) for way, path in paths.items()}
    read["diffusers"] = _changes_in_diffusers(pipeline(kind, unet), modules, file)
    worst = {
        way: max(relative_error(changes[stem], dense(layer)) for stem, layer in adapter.layers.items())
        for way, changes in read.items()
    }
    assert all(error <= FP16 for error in worst.values()), worst
    between = max(relative_error(read["ours"][stem], read["native"][stem]) for stem in adapter.layers)
    assert between <= 1e-5, between
    assert set(read_adapter(file).layers) == {stem_of_diffusers_module(kind, path) for path in modules.values()}


def _changes_in_diffusers(pipe, modules: dict[str, str], file: Path) -> dict[str, torch.Tensor]:
    before = {path: pipe.unet.get_submodule(path).weight.clone() for path in modules.values()}
    pipe.load_lora_weights(file.parent, weight_name=file.name)
    pipe.fuse_lora()
    pipe.unload_lora_weights()
    return {stem: (pipe.unet.get_submodule(path).weight - before[path]).flatten(1) for stem, path in modules.items()}
