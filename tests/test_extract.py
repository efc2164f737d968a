"""Extraction against the exact difference, from every form that a model comes in, a layer at a time."""

from __future__ import annotations

import gc
import json
import weakref
from collections.abc import Mapping
from dataclasses import dataclass, field

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from tests.adapters import dense, relative_error
from trilora_core.__main__ import main
from trilora_core.config import LayerConfig
from trilora_core.errors import InputError
from trilora_core.extract import ExtractConfig, extract
from trilora_core.fileformat import read_adapter
from trilora_core.weights import open_weights

BLOCK = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_"
SHAPES = {
    f"{BLOCK}attn1_to_q": (24, 24),
    f"{BLOCK}attn2_to_k": (24, 40),
    f"{BLOCK}ff_net_2": (24, 60),
    "lora_unet_down_blocks_0_resnets_0_conv1": (20, 8, 3, 3),
    "lora_te_text_model_encoder_layers_0_self_attn_q_proj": (16, 16),
}
ALL = ExtractConfig(rank=64, layers=LayerConfig("attention+ff+conv"))


@dataclass
class Model:
    """Weights in memory that count how many of them are alive at once."""

    tensors: Mapping[str, Tensor]
    architecture: str = "sd15"
    name: str = "model"
    alive: int = 0
    most: list[int] = field(default_factory=lambda: [0])

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {stem: tuple(tensor.shape) for stem, tensor in self.tensors.items()}

    def read(self, stem: str) -> Tensor:
        copy = self.tensors[stem].clone()
        self.alive += 1
        weakref.finalize(copy, self._freed)
        self.most[0] = max(self.most[0], self.alive)
        return copy

    def _freed(self) -> None:
        self.alive -= 1


def weights(seed: int, shapes: Mapping[str, tuple[int, ...]] = SHAPES) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {stem: torch.randn(shape, generator=generator) for stem, shape in shapes.items()}


def tuned_from(base: Mapping[str, Tensor], rank: int = 3) -> dict[str, Tensor]:
    """The base with a change of low rank on every layer."""
    generator = torch.Generator().manual_seed(99)
    changes = {}
    for stem, weight in base.items():
        flat = weight.flatten(1)
        up, down = (
            torch.randn(len(flat), rank, generator=generator),
            torch.randn(rank, flat[0].numel(), generator=generator),
        )
        changes[stem] = weight + 0.01 * (up @ down).view_as(weight)
    return changes


BASE = weights(0)
TUNED = tuned_from(BASE)


def test_a_full_rank_gives_the_difference_back() -> None:
    adapter, report = extract(Model(TUNED), Model(BASE), ALL)
    assert set(adapter.layers) == set(SHAPES) == set(report.layers) and not report.same
    for stem, layer in adapter.layers.items():
        assert relative_error(dense(layer), (TUNED[stem] - BASE[stem]).flatten(1)) < 1e-6
        assert layer.kernel == SHAPES[stem][2:]
    assert report.error < 1e-6
    changed = sum((TUNED[stem] - BASE[stem]).square().sum() for stem in SHAPES)
    assert report.change == pytest.approx(
        float((changed / sum(w.square().sum() for w in BASE.values())).sqrt()), rel=1e-4
    )


@pytest.mark.parametrize(("rank", "energy"), [(1, 1.0), (4, 1.0), (64, 0.7), (2, 0.9)])
def test_the_report_is_the_error_of_the_adapter(rank: int, energy: float) -> None:
    tuned = weights(1)
    config = ExtractConfig(rank, energy, LayerConfig("attention+ff+conv"))
    adapter, report = extract(Model(tuned), Model(BASE), config)
    lost, whole = 0.0, 0.0
    for stem, layer in adapter.layers.items():
        delta = (tuned[stem] - BASE[stem]).flatten(1).double()
        assert report.layers[stem].error == pytest.approx(relative_error(dense(layer), delta), abs=1e-6)
        values = torch.linalg.svdvals(delta).square()
        needed = int((values.cumsum(0) < energy * values.sum() * (1 - 1e-9)).sum()) + 1
        assert report.layers[stem].rank == len(layer.svd.s) == min(rank, needed, len(values))
        lost, whole = lost + float((dense(layer) - delta).square().sum()), whole + float(delta.square().sum())
    assert report.error == pytest.approx((lost / whole) ** 0.5, rel=1e-5)


def test_one_layer_of_each_model_is_alive_at_a_time() -> None:
    tuned, base = Model(TUNED), Model(BASE)
    told: list[tuple[int, int]] = []
    extract(tuned, base, ALL, progress=lambda done, total: told.append((done, total)))
    gc.collect()
    assert tuned.most == base.most == [1] and tuned.alive == base.alive == 0
    assert told == [(n, len(SHAPES)) for n in range(1, len(SHAPES) + 1)]


def test_layers_are_chosen_as_for_training() -> None:
    attention = {stem for stem in SHAPES if "attn" in stem}
    assert set(extract(Model(TUNED), Model(BASE), ExtractConfig(2))[0].layers) == attention
    without = extract(Model(TUNED), Model(BASE), ExtractConfig(2, text=False))[0]
    assert set(without.layers) == {stem for stem in attention if "_te_" not in stem}
    only = ExtractConfig(2, layers=LayerConfig(include=("*attn2*",)))
    assert set(extract(Model(TUNED), Model(BASE), only)[0].layers) == {f"{BLOCK}attn2_to_k"}


def test_what_is_the_same_or_in_one_text_encoder_only_is_left_out_and_told() -> None:
    same = {**TUNED, f"{BLOCK}attn1_to_q": BASE[f"{BLOCK}attn1_to_q"]}
    short = {stem: tensor for stem, tensor in BASE.items() if "_te_" not in stem}
    adapter, report = extract(Model(same), Model(short), ExtractConfig(2))
    assert set(adapter.layers) == {f"{BLOCK}attn2_to_k"}
    assert report.same == (f"{BLOCK}attn1_to_q",) and len(report.left_out) == 1
    assert "1 of the chosen layers are the same" in report.text() and "left out" in report.text()


def test_half_precision_is_compared_in_float32_and_mere_rounding_is_named() -> None:
    halves = {stem: tensor.half() for stem, tensor in BASE.items()}
    adapter, report = extract(Model(halves), Model(BASE), ALL)
    stem = f"{BLOCK}attn1_to_q"
    assert relative_error(dense(adapter.layers[stem]), halves[stem].float() - BASE[stem]) < 1e-6
    assert "perhaps one was only converted" in report.text()
    assert "only converted" not in extract(Model(TUNED), Model(BASE), ALL)[1].text()


def test_the_adapter_says_where_it_is_from() -> None:
    adapter, _ = extract(Model(TUNED, name="fine"), Model(BASE, name="plain"), ALL)
    told = adapter.metadata
    assert told["ss_base_model_version"] == "sd_v1" and told["modelspec.architecture"] == "stable-diffusion-v1/lora"
    assert told["ss_sd_model_name"] == "plain" and json.loads(told["trilora.extract"])["tuned"] == "fine"


def with_shape(stem: str, *shape: int) -> dict[str, Tensor]:
    return {**BASE, stem: torch.ones(shape)}


@pytest.mark.parametrize(
    ("tuned", "message"),
    [
        (Model(BASE), "the same in all 5 chosen layers"),
        (Model(TUNED, "sdxl"), "are sdxl and sd15"),
        (Model(with_shape(f"{BLOCK}attn1_to_q", 24, 30)), "attn1_to_q is 24 x 30 and 24 x 24"),
        (Model({**TUNED, f"{BLOCK}attn2_to_v": torch.ones(4, 4)}), "1 layers are in one only"),
        (Model({stem: tensor.to(torch.float8_e4m3fn) for stem, tensor in TUNED.items()}), "stored as float8_e4m3fn"),
        (Model({stem: tensor * float("nan") for stem, tensor in TUNED.items()}), "layer .* NaN"),
        (Model({"lora_unet_other": torch.ones(4, 4)}), "no layer of the choice"),
    ],
)
def test_bad_models_are_named(tuned: Model, message: str) -> None:
    with pytest.raises(InputError, match=message):
        extract(tuned, Model(BASE), ALL)


@pytest.mark.parametrize("options", [{"rank": 0}, {"energy": 0.0}, {"energy": 2.0}, {"text": 1}])
def test_bad_options_are_named(options) -> None:
    with pytest.raises(InputError, match=next(iter(options))):
        ExtractConfig(**options)


# --- files ----------------------------------------------------------------------------------------------------------


def single(architecture: str, seed: int) -> dict[str, Tensor]:
    """A checkpoint with the names of the real ones, few and thin layers."""
    width = {"sd15": 768, "sdxl": 2048}.get(architecture, 0)
    clip = {"sd15": "cond_stage_model.transformer", "sdxl": "conditioner.embedders.0.transformer"}.get(architecture)
    shapes: dict[str, tuple[int, ...]] = {"model.diffusion_model.other.bias": (8,)}
    if width:
        shapes |= {
            "model.diffusion_model.input_blocks.0.0.weight": (8, 4, 3, 3),
            "model.diffusion_model.input_blocks.3.0.op.weight": (8, 8, 3, 3),
            "model.diffusion_model.input_blocks.4.0.in_layers.2.weight": (8, 8, 3, 3),
            "model.diffusion_model.input_blocks.4.1.transformer_blocks.0.attn2.to_k.weight": (8, width),
            f"{clip}.text_model.encoder.layers.0.self_attn.q_proj.weight": (8, 8),
        }
    if architecture == "sdxl":
        blocks = "conditioner.embedders.1.model.transformer.resblocks.3"
        shapes |= {f"{blocks}.attn.in_proj_weight": (24, 8), f"{blocks}.mlp.c_fc.weight": (32, 8)}
    if architecture == "sd3":
        shapes["model.diffusion_model.joint_blocks.1.x_block.attn.qkv.weight"] = (24, 8)
        shapes["model.diffusion_model.joint_blocks.1.context_block.mlp.fc1.weight"] = (32, 8)
    if architecture == "flux":
        shapes |= {"img_in.weight": (8, 8), "double_blocks.0.img_attn.qkv.weight": (24, 8)}
        shapes.pop("model.diffusion_model.other.bias")
    return weights(seed, shapes)


FOUND = {
    "sd15": {
        "lora_unet_down_blocks_1_resnets_0_conv1": "model.diffusion_model.input_blocks.4.0.in_layers.2.weight",
        "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k": (
            "model.diffusion_model.input_blocks.4.1.transformer_blocks.0.attn2.to_k.weight"
        ),
        "lora_te_text_model_encoder_layers_0_self_attn_q_proj": (
            "cond_stage_model.transformer.text_model.encoder.layers.0.self_attn.q_proj.weight"
        ),
    },
    "sdxl": {
        "lora_unet_input_blocks_4_1_transformer_blocks_0_attn2_to_k": (
            "model.diffusion_model.input_blocks.4.1.transformer_blocks.0.attn2.to_k.weight"
        ),
        "lora_te1_text_model_encoder_layers_0_self_attn_q_proj": (
            "conditioner.embedders.0.transformer.text_model.encoder.layers.0.self_attn.q_proj.weight"
        ),
        "lora_te2_text_model_encoder_layers_3_self_attn_k_proj": (
            "conditioner.embedders.1.model.transformer.resblocks.3.attn.in_proj_weight"
        ),
        "lora_te2_text_model_encoder_layers_3_mlp_fc1": (
            "conditioner.embedders.1.model.transformer.resblocks.3.mlp.c_fc.weight"
        ),
    },
    "sd3": {
        "transformer.transformer_blocks.1.attn.to_v": "model.diffusion_model.joint_blocks.1.x_block.attn.qkv.weight",
        "transformer.transformer_blocks.1.ff_context.net.0.proj": (
            "model.diffusion_model.joint_blocks.1.context_block.mlp.fc1.weight"
        ),
    },
    "flux": {"lora_unet_double_blocks_0_img_attn_qkv": "double_blocks.0.img_attn.qkv.weight"},
}
ROWS = {"_self_attn_k_proj": slice(8, 16), "attn.to_v": slice(16, 24)}  # of fused q, k, v


@pytest.mark.parametrize("architecture", list(FOUND))
def test_single_files_are_read_by_the_names_of_lora_files(tmp_path, architecture: str) -> None:
    tensors = single(architecture, 0)
    save_file(tensors, tmp_path / "model.safetensors")
    with open_weights(tmp_path / "model.safetensors") as model:
        assert (model.architecture, model.name) == (architecture, "model")
        for stem, key in FOUND[architecture].items():
            rows = next((part for name, part in ROWS.items() if stem.endswith(name)), slice(None))
            assert torch.equal(model.read(stem), tensors[key][rows]), stem
            assert model.shapes[stem] == model.read(stem).shape
        assert not any("bias" in stem for stem in model.shapes)


@pytest.mark.parametrize("architecture", list(FOUND))
def test_the_verb_extracts_from_single_files(tmp_path, capsys, architecture: str) -> None:
    base, tuned = single(architecture, 0), single(architecture, 1)
    for name, tensors in (("base", base), ("tuned", tuned)):
        save_file(tensors, tmp_path / f"{name}.safetensors")
    files = [str(tmp_path / f"{name}.safetensors") for name in ("tuned", "base")]
    options = ["--rank", "64", "--layers", "attention+ff+conv", "--dtype", "fp32"]
    assert main(["extract", *files, *options, "--output", str(tmp_path / "out.safetensors")]) == 0
    found = read_adapter(tmp_path / "out.safetensors")
    for stem, key in FOUND[architecture].items():
        rows = next((part for name, part in ROWS.items() if stem.endswith(name)), slice(None))
        assert relative_error(dense(found.layers[stem]), (tuned[key] - base[key])[rows].flatten(1)) < 1e-5, stem
    assert "relative error" in capsys.readouterr().out


def test_folder_and_folder(tmp_path, capsys) -> None:
    diffusers = pytest.importorskip("diffusers")
    from tests.test_fileformat_diffusers import tiny_unet

    del diffusers
    unet = tiny_unet("sd15")
    for name, seed in (("base", 0), ("tuned", 1)):
        torch.manual_seed(seed)
        for parameter in unet.parameters():
            torch.nn.init.normal_(parameter.data)
        unet.save_pretrained(tmp_path / name / "unet")
        (tmp_path / name / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}')
    argv = ["extract", str(tmp_path / "tuned"), str(tmp_path / "base"), "--output", str(tmp_path / "o.safetensors")]
    assert main([*argv, "--rank", "2"]) == 0
    with open_weights(tmp_path / "tuned") as tuned, open_weights(tmp_path / "base") as base:
        wanted = {stem for stem in base.shapes if "_attn1_" in stem or "_attn2_" in stem}
        assert set(read_adapter(tmp_path / "o.safetensors").layers) == wanted and len(wanted) == 128
        assert extract(tuned, base, ExtractConfig(1))[1].error < 1


def test_bad_files_are_named(tmp_path, capsys) -> None:
    save_file({"a.weight": torch.ones(2, 2)}, tmp_path / "other.safetensors")
    (tmp_path / "cut.safetensors").write_bytes(b"\x10\x00\x00\x00\x00\x00\x00\x00{")
    (tmp_path / "model.ckpt").write_bytes(b"PK")
    (tmp_path / "empty").mkdir()
    (tmp_path / "flux").mkdir()
    (tmp_path / "flux" / "model_index.json").write_text('{"_class_name": "FluxPipeline"}')
    for name, message in (
        ("other.safetensors", "no SD 1.5, SDXL"),
        ("cut.safetensors", "damaged"),
        ("model.ckpt", "pickles"),
        ("none.safetensors", "does not exist"),
        ("empty", "no model_index.json"),
        ("flux", "FluxPipeline"),
    ):
        path = str(tmp_path / name)
        assert main(["extract", path, path, "--output", str(tmp_path / "o.safetensors")]) == 2
        assert message in capsys.readouterr().err, name
