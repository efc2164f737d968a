"""The diffusers backend on tiny random pipelines: SD and SDXL shapes, from objects, folders and single files."""

from __future__ import annotations

import functools
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

pytest.importorskip("diffusers", reason="the diffusers backend is not tested: pip install -e .[standalone]")
pytest.importorskip("transformers", reason="the diffusers backend is not tested: pip install -e .[standalone]")

import diffusers
from diffusers import AutoencoderKL, AutoencoderTiny, DDIMScheduler, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from trilora_core import backend_diffusers_single as single
from trilora_core.adapter import TriLoRA
from trilora_core.backend_diffusers import (
    DiffusersDenoiser,
    DiffusersEncoder,
    DiffusersPreviewer,
    apply_adapter,
    load_pipeline,
)
from trilora_core.backend_diffusers_apply import modules_by_stem
from trilora_core.config import LAYERS, AdapterConfig, LayerConfig, TrainConfig
from trilora_core.config_data import DataConfig
from trilora_core.data import load_folder
from trilora_core.data.framing import Frame
from trilora_core.errors import InputError
from trilora_core.fileformat import Adapter, Layer, read_adapter, write_adapter
from trilora_core.protocols import Denoiser, Previewer
from trilora_core.recompute import checkpointed
from trilora_core.spectral import SVD
from trilora_core.train import Run, train

MERGES = ["f o", "fo x</w>", "a t</w>"]
WORDS = 512 + len(MERGES) + 2


def text_config(**changes: Any) -> CLIPTextConfig:
    options: dict[str, Any] = {
        "vocab_size": WORDS,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": 12,
        "projection_dim": 16,
        "bos_token_id": WORDS - 2,
        "eos_token_id": WORDS - 1,
        "pad_token_id": WORDS - 1,
    }
    return CLIPTextConfig(**(options | changes))


def tiny_vae(**changes: Any) -> AutoencoderKL:
    options: dict[str, Any] = {
        "block_out_channels": (4, 8),
        "down_block_types": ("DownEncoderBlock2D",) * 2,
        "up_block_types": ("UpDecoderBlock2D",) * 2,
        "layers_per_block": 1,
        "norm_num_groups": 2,
        "scaling_factor": 0.18215,
        "sample_size": 16,
    }
    return AutoencoderKL(**(options | changes))


def tiny_unet(**changes: Any) -> UNet2DConditionModel:
    options: dict[str, Any] = {
        "sample_size": 8,
        "block_out_channels": (8, 16),
        "layers_per_block": 1,
        "norm_num_groups": 4,
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "attention_head_dim": 2,
        "cross_attention_dim": 16,
    }
    return UNet2DConditionModel(**(options | changes))


def scheduler(**changes: Any) -> DDIMScheduler:
    return DDIMScheduler.from_config(single._SCHEDULER | changes)


def tokenizer(folder: Path) -> CLIPTokenizer:
    single.write_tokenizer(folder, MERGES, length=12)
    return CLIPTokenizer.from_pretrained(folder)


def sd(folder: Path, **schedule: Any) -> Any:
    torch.manual_seed(0)
    return diffusers.StableDiffusionPipeline(
        vae=tiny_vae(),
        text_encoder=CLIPTextModel(text_config()),
        tokenizer=tokenizer(folder / "words"),
        unet=tiny_unet(),
        scheduler=scheduler(**schedule),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def sdxl(folder: Path, **schedule: Any) -> Any:
    torch.manual_seed(1)
    unet = tiny_unet(
        cross_attention_dim=28,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 2),
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=4,
        projection_class_embeddings_input_dim=6 * 4 + 12,
    )
    words = tokenizer(folder / "words")
    second = text_config(hidden_size=12, projection_dim=12)
    return diffusers.StableDiffusionXLPipeline(
        vae=tiny_vae(force_upcast=True, scaling_factor=0.13025),
        text_encoder=CLIPTextModel(text_config()),
        text_encoder_2=CLIPTextModelWithProjection(second),
        tokenizer=words,
        tokenizer_2=words,
        unet=unet,
        scheduler=scheduler(**schedule),
        add_watermarker=False,
    )


MAKERS = {"sd15": sd, "sdxl": sdxl}


@pytest.fixture(params=["sd15", "sdxl"])
def pipe(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Any]:
    made = MAKERS[request.param](tmp_path)
    made.set_progress_bar_config(disable=True)
    yield made


def weights(pipe: Any) -> dict[str, Tensor]:
    parts = {name: part for name, part in pipe.components.items() if isinstance(part, nn.Module)}
    return {f"{name}.{key}": t.clone() for name, part in parts.items() for key, t in part.state_dict().items()}


def equal(one: dict[str, Tensor], two: dict[str, Tensor]) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)


def hooks(pipe: Any) -> int:
    """How many hooks of ours are in the networks (transformers leaves some of its own)."""
    modules = [m for part in (pipe.unet, pipe.text_encoder) for m in part.modules()]
    return sum("trilora" in hook.__module__ for module in modules for hook in module._forward_hooks.values())


def batch(pipe: Any, count: int = 3) -> tuple[Tensor, Tensor, list[Any]]:
    generator = torch.Generator().manual_seed(3)
    latents, noise = (torch.randn(count, 4, 8, 8, generator=generator) for _ in range(2))
    return latents, noise, DiffusersEncoder(pipe).captions(["a fox", "at", "a fox at"][:count])


def enter(context: Any) -> None:
    with context:
        pass


def random_layer(module: Any, rank: int = 2, size: float = 1.0) -> Layer:
    """A full SVD layer for a Linear or a Conv, large enough to change a picture."""
    weight = module.weight.detach()
    wide = weight.flatten(1)
    u = torch.linalg.qr(torch.randn(wide.shape[0], rank))[0]
    v = torch.linalg.qr(torch.randn(wide.shape[1], rank))[0]
    kernel = tuple(getattr(module, "kernel_size", ()))
    return Layer(SVD(u, torch.linspace(size, size / 2, rank), v.T.contiguous()), kernel)


def random_adapter(pipe: Any, pattern: str = "attn|conv1|mlp_fc1|in_layers_2") -> Adapter:
    torch.manual_seed(5)
    modules = modules_by_stem(pipe)
    return Adapter({s: random_layer(m) for s, m in modules.items() if re.search(pattern, s)}, {})


# ---- the denoiser


def test_targets_are_all_attention_layers_under_their_file_names(pipe: Any) -> None:
    denoiser = DiffusersDenoiser(pipe, "base")
    stems = list(denoiser.targets())
    depth = {"sd15": 1 + 2 + 1, "sdxl": 2 + 2 * 2 + 2}[denoiser.architecture]  # down + up + middle
    assert len(stems) == len(set(stems)) == depth * 2 * 4
    first = {
        "sd15": "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q",
        "sdxl": "lora_unet_input_blocks_3_1_transformer_blocks_0_attn1_to_q",
    }[denoiser.architecture]
    assert stems[0] == first and first.replace("to_q", "to_out_0") in stems
    modules = modules_by_stem(pipe)
    assert all(target.module is modules[stem] for stem, target in denoiser.targets().items())


def test_times_cover_the_schedule_and_snr_falls(pipe: Any) -> None:
    denoiser = DiffusersDenoiser(pipe)
    times = denoiser.times(torch.tensor([0.0, 0.5, 0.99999, 1.0]))
    assert times.tolist() == [0, 500, 999, 999]
    snr = denoiser.snr(times)
    alpha = diffusers.DDPMScheduler.from_config(pipe.scheduler.config).alphas_cumprod[500]
    assert torch.allclose(snr[1], alpha / (1 - alpha)) and snr[0] > snr[1] > snr[2] > 0


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_prediction_and_target_by_hand(pipe: Any, kind: str) -> None:
    pipe.scheduler = scheduler(prediction_type=kind)
    denoiser = DiffusersDenoiser(pipe)
    latents, noise, cond = batch(pipe)
    times = torch.tensor([10, 500, 900])
    prediction, target = denoiser.predict(latents, noise, times, cond)
    reference = diffusers.DDPMScheduler.from_config(pipe.scheduler.config)
    clean = latents * pipe.vae.config.scaling_factor
    wanted = noise if kind == "epsilon" else reference.get_velocity(clean, noise, times)
    assert torch.allclose(target, wanted, atol=1e-6)
    added = None
    if denoiser.architecture == "sdxl":
        sizes = torch.tensor([[16.0, 16.0, 0.0, 0.0, 16.0, 16.0]]).repeat(3, 1)
        added = {"text_embeds": torch.stack([c["pooled"] for c in cond]), "time_ids": sizes}
    tokens = torch.stack([c["tokens"] for c in cond])
    noisy = reference.add_noise(clean, noise, times)
    by_hand = pipe.unet(noisy, times, encoder_hidden_states=tokens, added_cond_kwargs=added).sample
    assert torch.allclose(prediction, by_hand, atol=1e-5)


def test_a_batch_equals_its_samples_one_by_one(pipe: Any) -> None:
    denoiser = DiffusersDenoiser(pipe)
    latents, noise, cond = batch(pipe)
    times = torch.tensor([10, 500, 900])
    whole, _ = denoiser.predict(latents, noise, times, cond)
    for i in range(3):
        one, _ = denoiser.predict(latents[i : i + 1], noise[i : i + 1], times[i : i + 1], cond[i : i + 1])
        assert torch.allclose(one[0], whole[i], atol=1e-5)
    other, _ = denoiser.predict(latents, noise, times, cond[::-1])
    assert not torch.allclose(other[0], whole[0], atol=1e-5)


def test_zero_terminal_snr_gives_finite_v_targets(tmp_path: Path) -> None:
    pipe = sd(tmp_path, prediction_type="v_prediction", rescale_betas_zero_snr=True)
    latents, noise, cond = batch(pipe, 1)
    denoiser = DiffusersDenoiser(pipe)
    prediction, target = denoiser.predict(latents, noise, torch.tensor([999]), cond)
    assert prediction.isfinite().all() and torch.allclose(target, -latents * 0.18215, atol=1e-3)
    assert denoiser.snr(torch.tensor([999])) < 1e-6


def test_half_precision_base_predicts_in_float32_outside(tmp_path: Path) -> None:
    pipe = sd(tmp_path).to(torch.bfloat16)
    latents, noise, cond = batch(pipe, 2)
    denoiser = DiffusersDenoiser(pipe)
    prediction, target = denoiser.predict(latents, noise, torch.tensor([1, 2]), cond)
    assert denoiser.compute_dtype is torch.bfloat16
    assert prediction.dtype is torch.float32 and torch.equal(target, noise)


def test_gradients_flow_into_the_adapter_only_and_the_base_stays_as_it_is(pipe: Any) -> None:
    before = weights(pipe)
    denoiser = DiffusersDenoiser(pipe)
    adapter = TriLoRA.create(denoiser.targets(), AdapterConfig(rank=2), seed=0, data_hash="x")
    latents, noise, cond = batch(pipe, 2)
    with adapter.attach(denoiser.targets()):
        prediction, target = denoiser.predict(latents, noise, torch.tensor([3, 800]), cond)
        (prediction - target).square().mean().backward()
    assert all(p.grad is None for m in (pipe.unet, pipe.vae, pipe.text_encoder) for p in m.parameters())
    assert all(branch.up.grad is not None and branch.up.grad.any() for branch in adapter.branches.values())
    assert equal(before, weights(pipe)) and hooks(pipe) == 0


@pytest.mark.parametrize("which", ["attention", "attention+ff+conv"])
def test_checkpointed_blocks_give_the_same_gradients(pipe: Any, which: str) -> None:
    denoiser = DiffusersDenoiser(pipe)
    latents, noise, cond = batch(pipe, 2)
    found = []
    targets = denoiser.targets(LayerConfig(which))
    for recompute in (False, True):
        adapter = TriLoRA.create(targets, AdapterConfig(rank=2), seed=0, data_hash="x")
        with adapter.attach(targets), checkpointed(denoiser.blocks() if recompute else []):
            prediction, target = denoiser.predict(latents, noise, torch.tensor([3, 800]), cond)
            (prediction - target).square().mean().backward()
        found.append(torch.cat([branch.up.grad.flatten() for branch in adapter.branches.values()]))
    assert len(denoiser.blocks()) >= 8
    assert torch.allclose(found[0], found[1], atol=1e-7, rtol=1e-5)


def test_the_fingerprint_follows_the_weights_and_not_the_dtype_or_place(tmp_path: Path) -> None:
    pipe = sd(tmp_path)
    pipe.unet.to(torch.float16)
    half = DiffusersDenoiser(pipe).base_fingerprint
    pipe.unet.to(torch.float32)
    assert DiffusersDenoiser(pipe, "other name").base_fingerprint == half
    with torch.no_grad():
        pipe.unet.conv_out.weight[0, 0, 0, 0] += 1
    assert DiffusersDenoiser(pipe).base_fingerprint != half


# ---- the encoder


def test_pictures_become_the_mean_unscaled_and_the_same_each_time(pipe: Any) -> None:
    encoder = DiffusersEncoder(pipe)
    images = torch.rand(2, 3, 16, 24)
    latents = encoder.pictures(images)
    assert latents.shape == (2, 4, 8, 12) and latents.dtype is torch.float32 and not latents.requires_grad
    with torch.no_grad():
        mean = pipe.vae.encode(images * 2 - 1).latent_dist.mean
    assert torch.equal(latents, mean) and torch.equal(latents, encoder.pictures(images))


def test_captions_are_what_the_pipeline_itself_would_use(pipe: Any) -> None:
    texts = ["a fox", "", "at"]
    cond = DiffusersEncoder(pipe).captions(texts)
    for text, item in zip(texts, cond, strict=True):
        encoded = pipe.encode_prompt(
            prompt=text, device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=False
        )
        assert torch.allclose(item["tokens"], encoded[0][0], atol=1e-6)
        assert (item["pooled"] is None) == (len(encoded) == 2)
        assert item["pooled"] is None or torch.allclose(item["pooled"], encoded[2][0], atol=1e-6)


def test_a_resolution_that_the_vae_cannot_halve_is_refused(pipe: Any) -> None:
    with pytest.raises(InputError, match="resolution is 17; this model needs a multiple of 2, such as 16"):
        DiffusersEncoder(pipe).pictures(torch.rand(1, 3, 17, 17))


def test_a_vae_that_overflows_in_half_precision_runs_in_single(tmp_path: Path) -> None:
    pipe = sdxl(tmp_path)
    pipe.vae.to(torch.float16)
    before = weights(pipe)
    seen = []
    pipe.vae.encoder.register_forward_hook(lambda module, args, output: seen.append(output.dtype))
    DiffusersEncoder(pipe).pictures(torch.rand(1, 3, 16, 16))
    assert seen == [torch.float32] and pipe.vae.dtype is torch.float16 and equal(before, weights(pipe))


def test_the_tiny_autoencoder_works_too(tmp_path: Path) -> None:
    pipe = sd(tmp_path)
    tiny = AutoencoderTiny(
        encoder_block_out_channels=(4, 4),
        decoder_block_out_channels=(4, 4),
        num_encoder_blocks=(1, 1),
        num_decoder_blocks=(1, 1),
    )
    pipe = diffusers.StableDiffusionPipeline(**{**pipe.components, "vae": tiny}, requires_safety_checker=False)
    images = torch.rand(1, 3, 16, 16)
    with torch.no_grad():
        wanted = tiny.encode(images * 2 - 1).latents
    assert torch.equal(DiffusersEncoder(pipe).pictures(images), wanted)
    assert DiffusersDenoiser(pipe).prediction_type == "epsilon"


def test_the_encoders_fingerprint_covers_vae_and_text_encoders(pipe: Any) -> None:
    first = DiffusersEncoder(pipe).fingerprint
    with torch.no_grad():
        next(pipe.text_encoder.parameters())[0, 0] += 1
    second = DiffusersEncoder(pipe).fingerprint
    with torch.no_grad():
        pipe.vae.quant_conv.weight[0, 0] += 1
    assert len({first, second, DiffusersEncoder(pipe).fingerprint}) == 3


# ---- previews and adapters applied at run time


def picture(pipe: Any, seed: int = 1, prompt: str = "a fox") -> bytes:
    return DiffusersPreviewer(pipe, steps=2, guidance=3.0).preview([prompt], [seed])[0].tobytes()


def test_previews_follow_prompt_and_seed_and_repeat(pipe: Any) -> None:
    previewer = DiffusersPreviewer(pipe, steps=2)
    pictures = previewer.preview(["a fox", "a fox", "at", "a fox"], [1, 2, 1, 1])
    assert [p.size for p in pictures] == [(16, 16)] * 4
    assert pictures[0].tobytes() == pictures[3].tobytes()
    assert len({p.tobytes() for p in pictures}) == 3
    assert DiffusersPreviewer(pipe, steps=1, resolution=32).preview(["at"], [0])[0].size == (32, 32)
    with pytest.raises(InputError, match="2 prompts but 1 seeds; give one seed for each prompt"):
        previewer.preview(["a", "b"], [1])


def test_any_whole_number_is_a_seed(tmp_path: Path) -> None:
    """One of more than 64 bits counts by its lower ones, as torch has the negative ones already."""
    pipe = sd(tmp_path)
    assert picture(pipe, 5) == picture(pipe, 2**64 + 5) == picture(pipe, 5 - 2**64) != picture(pipe, 10**23)
    assert picture(pipe, -1) == picture(pipe, 2**64 - 1)


def test_impossible_previews_are_refused(tmp_path: Path) -> None:
    pipe = sd(tmp_path)
    with pytest.raises(InputError, match="resolution is 20; wanted a multiple of 8 pixels"):
        DiffusersPreviewer(pipe, resolution=20)
    with pytest.raises(InputError, match="steps is 0; wanted at least one"):
        DiffusersPreviewer(pipe, steps=0)
    for steps in (1000, 5000):  # the scheduler fails at the first too
        with pytest.raises(
            InputError, match=f"steps is {steps}; wanted at most 999, as the model's noise schedule has"
        ):
            DiffusersPreviewer(pipe, steps=steps)
    with pytest.raises(InputError, match="guidance is nan; wanted a finite number"):
        DiffusersPreviewer(pipe, guidance=float("nan"))


def test_the_protocols_are_met(pipe: Any) -> None:
    assert isinstance(DiffusersDenoiser(pipe), Denoiser)
    assert isinstance(DiffusersPreviewer(pipe), Previewer)


def test_an_applied_adapter_changes_the_picture_and_leaves_no_trace(pipe: Any) -> None:
    before, base = weights(pipe), picture(pipe)
    adapter = random_adapter(pipe)
    assert any(layer.kernel for layer in adapter.layers.values()) and any("lora_te" in s for s in adapter.layers)
    with apply_adapter(pipe, adapter, 1.0):
        assert picture(pipe) != base and hooks(pipe) > 0
    with apply_adapter(pipe, adapter, 0.0):
        assert hooks(pipe) == 0 and picture(pipe) == base
    with pytest.raises(ZeroDivisionError), apply_adapter(pipe, adapter):
        raise ZeroDivisionError
    assert hooks(pipe) == 0 and equal(before, weights(pipe)) and picture(pipe) == base


def test_applying_equals_adding_the_dense_delta_to_every_weight(pipe: Any) -> None:
    adapter = random_adapter(pipe)
    denoiser = DiffusersDenoiser(pipe)
    latents, noise, _ = batch(pipe, 2)
    times = torch.tensor([3, 800])

    def outcome() -> Tensor:
        return denoiser.predict(latents, noise, times, batch(pipe, 2)[2])[0]

    with torch.no_grad():
        plain = outcome()
        with apply_adapter(pipe, adapter, -0.7):
            applied = outcome()
        for stem, module in modules_by_stem(pipe).items():
            if stem in adapter.layers:
                svd = adapter.layers[stem].svd
                module.weight -= 0.7 * ((svd.u * svd.s) @ svd.vh).reshape(module.weight.shape)
        assert torch.allclose(applied, outcome(), atol=1e-4) and not torch.allclose(applied, plain, atol=1e-2)


def test_two_applied_adapters_add_up(tmp_path: Path) -> None:
    pipe = sd(tmp_path)
    adapter, base = random_adapter(pipe), picture(pipe)
    with apply_adapter(pipe, adapter, 0.5), apply_adapter(pipe, adapter, 0.25):
        both = picture(pipe)
    with apply_adapter(pipe, adapter, 0.75):
        once = picture(pipe)
    difference = numpy.frombuffer(both, numpy.uint8).astype(int) - numpy.frombuffer(once, numpy.uint8)
    assert abs(difference).max() <= 1 and both != base


def test_a_trained_adapter_applies_as_it_trained(pipe: Any) -> None:
    denoiser = DiffusersDenoiser(pipe)
    adapter = TriLoRA.create(denoiser.targets(), AdapterConfig(rank=3), seed=0, data_hash="x")
    with torch.no_grad():
        for branch in adapter.branches.values():
            branch.up.normal_(std=0.2)
    latents, noise, cond = batch(pipe, 2)
    arguments = (latents, noise, torch.tensor([3, 800]), cond)
    with torch.no_grad():
        with adapter.attach(denoiser.targets()):
            trained, _ = denoiser.predict(*arguments)
        with apply_adapter(pipe, Adapter(adapter.canonical(), {})):
            applied, _ = denoiser.predict(*arguments)
    assert torch.allclose(trained, applied, atol=1e-4)


def test_a_saved_file_means_the_same_to_diffusers_own_loader(pipe: Any, tmp_path: Path) -> None:
    pytest.importorskip("peft", reason="diffusers' own LoRA loader is not compared: pip install peft")
    denoiser = DiffusersDenoiser(pipe)
    adapter = random_adapter(pipe, "attn|self_attn")
    write_adapter(tmp_path / "a.safetensors", adapter, dtype=torch.float16)
    arguments = (*batch(pipe, 2)[:2], torch.tensor([3, 800]))
    with torch.no_grad():
        base, _ = denoiser.predict(*arguments, batch(pipe, 2)[2])
        with apply_adapter(pipe, read_adapter(tmp_path / "a.safetensors")):
            ours, _ = denoiser.predict(*arguments, batch(pipe, 2)[2])
        pipe.load_lora_weights(tmp_path, weight_name="a.safetensors", local_files_only=True)
        theirs, _ = denoiser.predict(*arguments, batch(pipe, 2)[2])
    assert (ours - base).norm() > 0.01 * base.norm()
    assert (ours - theirs).norm() <= 1e-3 * (theirs - base).norm()


def test_an_adapter_of_another_model_is_refused_before_anything_changes(tmp_path: Path) -> None:
    small, large = sd(tmp_path / "a"), sdxl(tmp_path / "b")
    with pytest.raises(InputError, match=r"layers that this SDXL model lacks, such as lora_unet_down_blocks"):
        enter(apply_adapter(large, random_adapter(small)))
    adapter = random_adapter(small, "attn1_to_q")
    stem = next(iter(adapter.layers))
    wide = Layer(SVD(torch.ones(9, 1), torch.ones(1), torch.ones(1, 8)))
    wrong = Adapter(adapter.layers | {stem: wide}, {})
    with pytest.raises(InputError, match=f"layer {stem} of the adapter is for a weight of 9x8, this model has 8x8"):
        enter(apply_adapter(small, wrong))
    with pytest.raises(InputError, match="strength is nan; wanted a finite number"):
        enter(apply_adapter(small, adapter, float("nan")))
    assert hooks(small) == hooks(large) == 0


# ---- the whole way


def fill(folder: Path) -> None:
    folder.mkdir()
    for index, text in enumerate(["a fox", "at", "a fox"]):
        noise = numpy.random.default_rng(index).integers(0, 256, (20, 16, 3), dtype=numpy.uint8)
        Image.fromarray(noise).save(folder / f"{index}.png")
        (folder / f"{index}.txt").write_text(text)


def test_three_pictures_from_a_folder_to_a_changed_picture(pipe: Any, tmp_path: Path) -> None:
    fill(tmp_path / "pictures")
    denoiser = DiffusersDenoiser(pipe, "tiny")
    before, base = weights(pipe), picture(pipe)
    data = load_folder(DataConfig(folder=str(tmp_path / "pictures"), resolution=16), DiffusersEncoder(pipe))
    assert [tuple(data.store.get(item.latents[0]).shape) for item in data.items] == [(4, 8, 8)] * 3
    assert data.items[0].cond == data.items[2].cond != data.items[1].cond
    config = TrainConfig(steps=3, batch_size=2, adapter=AdapterConfig(rank=2))
    adapter = TriLoRA.create(denoiser.targets(), config.adapter, seed=0, data_hash=data.content_hash)
    run = Run(config, denoiser, data, adapter)
    with adapter.attach(denoiser.targets()):
        steps = list(train(run))
    assert len(steps) == 3 and all(numpy.isfinite(step.loss) and not step.dropped for step in steps)
    assert equal(before, weights(pipe)) and hooks(pipe) == 0
    with apply_adapter(pipe, run.adapter(), 40.0):
        assert picture(pipe) != base and hooks(pipe) > 0


def test_sdxl_is_told_the_size_of_the_picture_and_where_it_was_cut(tmp_path: Path) -> None:
    pipe = sdxl(tmp_path)
    frame = Frame((16, 16), (2.0, 0.0, 12.0, 10.0), False, (14, 10))
    denoiser, encoder = DiffusersDenoiser(pipe), DiffusersEncoder(pipe)
    whole = encoder.captions(["a fox"])[0]
    placed = encoder.placed(whole, frame)
    seen: list[Any] = []
    pipe.unet.register_forward_pre_hook(lambda _module, _args, named: seen.append(named), with_kwargs=True)
    latents = torch.zeros(2, 4, 8, 8)
    denoiser.predict(latents, latents, torch.tensor([1, 1]), [whole, placed])
    assert seen[0]["added_cond_kwargs"]["time_ids"].tolist() == [[16, 16, 0, 0, 16, 16], [10, 14, 0, 3, 16, 16]]


def test_other_models_are_not_told(tmp_path: Path) -> None:
    encoder = DiffusersEncoder(sd(tmp_path))
    cond = encoder.captions(["a fox"])[0]
    assert encoder.placed(cond, Frame((16, 16), (0.0, 0.0, 16.0, 16.0), False, (16, 16))) == cond


def test_weights_in_captions_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"captions.weights is on, but diffusers reads \(word:1.2\) as text"):
        DiffusersEncoder(sd(tmp_path)).captions(["a (fox:1.2)"], weights=True)


# ---- loading


def test_a_folder_loads_without_network(pipe: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe.save_pretrained(tmp_path / "model")
    no_network(monkeypatch)
    loaded = load_pipeline(tmp_path / "model", device="cpu")
    assert type(loaded) is type(pipe) and loaded.unet.dtype is torch.float32
    assert equal(weights(loaded), weights(pipe)) and picture(loaded) == picture(pipe)
    assert DiffusersDenoiser(loaded).base_name == "model"


def test_a_folder_of_half_precision_files_only_loads_too(tmp_path: Path) -> None:
    pipe = sd(tmp_path).to(torch.float16)
    pipe.save_pretrained(tmp_path / "model", variant="fp16")
    loaded = load_pipeline(tmp_path / "model", device="cpu")
    assert loaded.unet.dtype is torch.float32 and equal(weights(loaded.to(torch.float16)), weights(pipe))


def test_bad_models_are_refused_with_what_to_do(tmp_path: Path) -> None:
    sd(tmp_path).save_pretrained(tmp_path / "model")
    with pytest.raises(InputError, match="does not exist; models are read from disk only: give a diffusers folder or"):
        load_pipeline("runwayml/stable-diffusion-v1-5")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"empty has no model_index.json; give a diffusers folder or a .safetensors"):
        load_pipeline(tmp_path / "empty")
    for name, message in (
        ("a.ckpt", "is a pickle, which may run code when it is opened; give a .safetensors file"),
        ("a.txt", "is no model; give a diffusers folder or a .safetensors file"),
        ("a.safetensors", r"is not a whole safetensors file \(.*\); copy it again"),
    ):
        (tmp_path / name).write_bytes(b"something")
        with pytest.raises(InputError, match=message):
            load_pipeline(tmp_path / name)
    index = tmp_path / "model" / "model_index.json"
    index.write_text(index.read_text().replace("StableDiffusionPipeline", "FluxPipeline"))
    with pytest.raises(
        InputError, match="model holds a FluxPipeline; known: StableDiffusionPipeline, StableDiffusionXL"
    ):
        load_pipeline(tmp_path / "model")
    index.write_text("{")
    with pytest.raises(InputError, match=r"model_index.json is not valid \(.*\); copy the folder again"):
        load_pipeline(tmp_path / "model")


@pytest.mark.parametrize("damage", ["cut", "gone", "config", "cut text", "no config", "no part"])
def test_damaged_folders_are_named(tmp_path: Path, damage: str) -> None:
    sd(tmp_path).save_pretrained(tmp_path / "model")
    file = tmp_path / "model" / "unet" / "diffusion_pytorch_model.safetensors"
    if damage == "cut":
        file.write_bytes(file.read_bytes()[:5000])
    elif damage == "gone":
        file.unlink()
    elif damage == "cut text":
        text = tmp_path / "model" / "text_encoder" / "model.safetensors"
        text.write_bytes(text.read_bytes()[:5000])
    elif damage == "no config":
        (tmp_path / "model" / "text_encoder" / "config.json").write_text("[]")
    elif damage == "no part":
        index = tmp_path / "model" / "model_index.json"
        index.write_text(json.dumps(json.loads(index.read_text()) | {"unet": 3}))
    else:
        config = json.loads((file.parent / "config.json").read_text())
        (file.parent / "config.json").write_text(json.dumps(config | {"cross_attention_dim": 24}))
    with pytest.raises(InputError, match=r"model \S+model cannot be loaded \(.+\); copy the folder again"):
        load_pipeline(tmp_path / "model", device="cpu")


@pytest.mark.parametrize("left", ["", "tokenizer_config.json"])
def test_a_folder_without_a_tokenizer_is_named(pipe: Any, tmp_path: Path, left: str) -> None:
    """transformers would make one up that knows no words."""
    pipe.save_pretrained(tmp_path / "model")
    part = "tokenizer_2" if hasattr(pipe, "tokenizer_2") else "tokenizer"
    for file in (tmp_path / "model" / part).iterdir():
        if file.name != left:
            file.unlink()
    with pytest.raises(InputError, match=rf"model \S+model (has no {part}, or not|cannot be loaded).*; copy"):
        load_pipeline(tmp_path / "model", device="cpu")


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder", "text_encoder_2"])
def test_weights_that_a_folder_lacks_are_named_not_drawn(pipe: Any, tmp_path: Path, part: str) -> None:
    """transformers would draw what is missing at random and go on."""
    if not hasattr(pipe, part):
        pytest.skip("one text encoder only")
    pipe.save_pretrained(tmp_path / "model")
    (file,) = (tmp_path / "model" / part).glob("*.safetensors")
    tensors = load_file(file)
    for name in sorted(tensors)[2:4]:
        del tensors[name]
    save_file(tensors, file, {"format": "pt"})
    with pytest.raises(InputError, match=rf"model \S+model has no weights for {part}\.\S+ and 1 more; copy it again"):
        load_pipeline(tmp_path / "model", device="cpu")


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ("model.diffusion_model.", r"cannot be loaded \(weights of its U-Net or VAE are missing\)"),
        ("first_stage_model.", r"cannot be loaded \(weights of its U-Net or VAE are missing\)"),
        ("cond_stage_model.", r"has no weights for text_encoder\.\S+; copy it again"),
    ],
)
def test_weights_that_a_single_file_lacks_are_named(tmp_path: Path, part: str, message: str) -> None:
    sd(tmp_path).save_pretrained(tmp_path / "model")
    write_single_file(sd(tmp_path), tmp_path / "one.safetensors")
    tensors = load_file(tmp_path / "one.safetensors")
    del tensors[[name for name in sorted(tensors) if name.startswith(part)][3]]
    save_file(tensors, tmp_path / "one.safetensors")
    with pytest.raises(InputError, match=message):
        load_pipeline(tmp_path / "one.safetensors", config=tmp_path / "model", device="cpu")


def test_other_pipelines_are_refused(tmp_path: Path) -> None:
    pipe = sd(tmp_path)
    with pytest.raises(InputError, match="prediction_type 'sample'; known: epsilon, v_prediction"):
        DiffusersDenoiser(sd(tmp_path, prediction_type="sample"))
    pipe.scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
    with pytest.raises(InputError, match="FlowMatchEulerDiscreteScheduler has no noise schedule of betas"):
        DiffusersDenoiser(pipe)
    pipe.scheduler, pipe.unet = scheduler(), tiny_unet(in_channels=9)
    with pytest.raises(InputError, match=r"the U-Net takes 9 channels and the VAE gives 4 \(an inpainting model\?\)"):
        DiffusersDenoiser(pipe)
    pipe.unet = tiny_unet(cross_attention_dim=1024)
    with pytest.raises(InputError, match=r"not that of SD 1.5 or SDXL \(SD 2 has captions of width 1024\)"):
        DiffusersDenoiser(pipe)


# ---- single files

UNET_INNER = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
UNET_OUTER = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
CLIP_INNER = {
    "text_model.": "",
    "encoder.layers.": "transformer.resblocks.",
    "self_attn.": "attn.",
    "layer_norm": "ln_",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "final_ln_": "ln_final",
    "embeddings.token_embedding": "token_embedding",
    "embeddings.position_embedding.weight": "positional_embedding",
}
VAE_INNER = {
    "mid_block.resnets.0": "mid.block_1",
    "mid_block.resnets.1": "mid.block_2",
    "mid_block.attentions.0": "mid.attn_1",
    "conv_shortcut": "nin_shortcut",
    "conv_norm_out": "norm_out",
    "group_norm": "norm",
    "to_out.0": "proj_out",
    "to_q": "q",
    "to_k": "k",
    "to_v": "v",
}


def ldm_unet_name(name: str, layers: int = 1, up_without_attention: str = "0") -> str:
    """The original checkpoint's name of a U-Net tensor, by the published order of blocks."""
    for new, old in UNET_OUTER.items():
        if name.startswith(new + "."):
            return name.replace(new, old, 1)
    name = re.sub(r"resnets\.(\d+)\.(\w+)", lambda m: f"resnets.{m[1]}.{UNET_INNER[m[2]]}", name)
    if match := re.match(r"mid_block\.(resnets|attentions)\.(\d)\.(.+)", name):
        return f"middle_block.{1 if match[1] == 'attentions' else 2 * int(match[2])}.{match[3]}"
    way, block, kind, index, rest = re.match(r"(down|up)_blocks\.(\d)\.(\w+)\.(\d)\.(.+)", name).groups()
    first = int(block) * (layers + 1)
    if kind == "downsamplers":
        return f"input_blocks.{first + layers + 1}.0.op.{rest.removeprefix('conv.')}"
    if kind == "upsamplers":
        return f"output_blocks.{first + layers}.{1 if block in up_without_attention else 2}.{rest}"
    place = f"input_blocks.{first + int(index) + 1}" if way == "down" else f"output_blocks.{first + int(index)}"
    return f"{place}.{int(kind == 'attentions')}.{rest}"


def ldm_vae_name(name: str, blocks: int = 2) -> str:
    name = re.sub(r"up_blocks\.(\d)", lambda m: f"up.{blocks - 1 - int(m[1])}", name)
    name = re.sub(r"(up|down)(?:_blocks)?\.(\d)\.resnets\.(\d)", r"\1.\2.block.\3", name)
    name = re.sub(r"(down|up)(?:_blocks)?\.(\d)\.(down|up)samplers\.0", r"\1.\2.\3sample", name)
    for new, old in VAE_INNER.items():
        name = re.sub(rf"(?<=\.){re.escape(new)}(?=\.)", old, name)
    return name


def open_clip(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A second text encoder in the spelling of OpenCLIP: q, k and v in one tensor, the projection turned."""
    found: dict[str, Tensor] = {"text_projection": state["text_projection.weight"].T}
    for key, value in state.items():
        if match := re.fullmatch(r"text_model\.encoder\.layers\.(\d+)\.self_attn\.q_proj\.(\w+)", key):
            parts = [state[key.replace("q_proj", f"{part}_proj")] for part in "qkv"]
            found[f"transformer.resblocks.{match[1]}.attn.in_proj_{match[2]}"] = torch.cat(parts)
        elif "_proj." not in key or "out_proj" in key:
            name = functools.reduce(lambda text, pair: text.replace(*pair), CLIP_INNER.items(), key)
            if "projection" not in name:
                found[name] = value
    return found


def write_single_file(pipe: Any, path: Path) -> None:
    """Save a pipeline as one file in the original checkpoints' spelling."""
    layers = pipe.unet.config.layers_per_block
    bare = "".join(str(i) for i, kind in enumerate(pipe.unet.config.up_block_types) if kind == "UpBlock2D")
    tensors = {f"model.diffusion_model.{ldm_unet_name(k, layers, bare)}": v for k, v in pipe.unet.state_dict().items()}
    for key, value in pipe.vae.state_dict().items():
        attention = re.search(r"attentions\.0\.to_\w+(\.0)?\.weight", key)
        name = ldm_vae_name(key, len(pipe.vae.config.block_out_channels))
        tensors[f"first_stage_model.{name}"] = value[:, :, None, None] if attention else value
    second = getattr(pipe, "text_encoder_2", None)
    first = "conditioner.embedders.0" if second is not None else "cond_stage_model"
    text = {k.removeprefix("text_model."): v for k, v in pipe.text_encoder.state_dict().items()}
    tensors |= {f"{first}.transformer.text_model.{k}": v for k, v in text.items()}
    if second is not None:
        tensors |= {f"conditioner.embedders.1.model.{k}": v for k, v in open_clip(second.state_dict()).items()}
    save_file({k: v.contiguous() for k, v in tensors.items()}, path)


def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any connection is an error."""

    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("the network was asked")

    for name in ("socket.connect", "socket.connect_ex", "socket.sendto", "socket.sendmsg"):
        monkeypatch.setattr(f"socket.{name}", refuse)
    for name in ("getaddrinfo", "gethostbyname", "create_connection"):
        monkeypatch.setattr(f"socket.{name}", refuse)


def wide_sd(folder: Path) -> Any:
    """As SD 1.5 in what a file is recognised by: captions of width 768."""
    pipe = sd(folder)
    torch.manual_seed(2)
    pipe.text_encoder = CLIPTextModel(text_config(hidden_size=768, intermediate_size=16, num_hidden_layers=1))
    pipe.unet = tiny_unet(cross_attention_dim=768)
    return pipe


def shapes_of(pipe: Any) -> dict[str, dict[str, Any]]:
    text = json.loads(pipe.text_encoder.config.to_json_string())
    return {"unet": dict(pipe.unet.config), "vae": dict(pipe.vae.config), "text_encoder": text}


def test_a_single_file_loads_without_network_or_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = wide_sd(tmp_path)
    write_single_file(pipe, tmp_path / "one.safetensors")
    (tmp_path / "merges.txt").write_text("\n".join(["#version: 0.2", *MERGES, ""]))
    monkeypatch.setattr(single, "_SD15", shapes_of(pipe))
    monkeypatch.setenv("CLIP_TOKENIZER", str(tmp_path))
    no_network(monkeypatch)
    loaded = load_pipeline(tmp_path / "one.safetensors", device="cpu")
    assert equal(weights(loaded), weights(pipe))
    assert loaded.scheduler.config.prediction_type == "epsilon"
    text = ["a fox at 3"]
    assert loaded.tokenizer(text).input_ids == pipe.tokenizer(text).input_ids


def test_a_single_file_may_borrow_the_configuration_of_a_folder(
    pipe: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe.save_pretrained(tmp_path / "model")
    write_single_file(pipe, tmp_path / "one.safetensors")
    for part in ("unet", "vae", "text_encoder", "text_encoder_2"):
        for file in (tmp_path / "model" / part).glob("*.safetensors"):
            file.unlink()
    no_network(monkeypatch)
    loaded = load_pipeline(tmp_path / "one.safetensors", config=tmp_path / "model", device="cpu")
    assert equal(weights(loaded), weights(pipe)) and picture(loaded) == picture(pipe)
    assert DiffusersDenoiser(loaded).base_name == "one.safetensors"


def test_a_single_file_of_another_shape_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_single_file(wide_sd(tmp_path), tmp_path / "one.safetensors")
    (tmp_path / "merges.txt").write_text("a b\n")
    monkeypatch.setenv("CLIP_TOKENIZER", str(tmp_path))
    with pytest.raises(InputError, match=r"one.safetensors cannot be loaded \(.+\); if the model has an unusual shape"):
        load_pipeline(tmp_path / "one.safetensors", device="cpu")


def test_single_files_of_other_models_are_named(tmp_path: Path) -> None:
    write_single_file(sd(tmp_path), tmp_path / "narrow.safetensors")
    with pytest.raises(InputError, match=r"has captions of width 16; known: 768 \(SD 1.5\) and 2048 \(SDXL\)"):
        load_pipeline(tmp_path / "narrow.safetensors")
    save_file({"x": torch.ones(1)}, tmp_path / "lora.safetensors")
    with pytest.raises(InputError, match=r"holds no U-Net under model.diffusion_model.; give a full SD 1.5 or SDXL"):
        load_pipeline(tmp_path / "lora.safetensors")
    save_file({"model.diffusion_model.input_blocks.0.0.weight": torch.ones(8, 9, 3, 3)}, tmp_path / "paint.safetensors")
    with pytest.raises(InputError, match=r"takes 9 channels \(inpainting\?\); wanted a text-to-image model with 4"):
        load_pipeline(tmp_path / "paint.safetensors")


@pytest.mark.parametrize(
    ("marks", "kind", "zero"),
    [((), "epsilon", False), (("v_pred",), "v_prediction", False), (("v_pred", "ztsnr"), "v_prediction", True)],
)
def test_marks_of_v_prediction_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, marks: tuple[str, ...], kind: str, zero: bool
) -> None:
    (tmp_path / "merges.txt").write_text("a b\n")
    monkeypatch.setenv("CLIP_TOKENIZER", str(tmp_path))
    tensors = {"model.diffusion_model.input_blocks.0.0.weight": torch.ones(8, 4, 3, 3)}
    tensors["model.diffusion_model.input_blocks.4.1.transformer_blocks.0.attn2.to_k.weight"] = torch.ones(4, 2048)
    save_file(tensors | {mark: torch.ones(1) for mark in marks}, tmp_path / "xl.safetensors")
    single.write_config_folder(tmp_path / "xl.safetensors", tmp_path / "config")
    schedule = json.loads((tmp_path / "config" / "scheduler" / "scheduler_config.json").read_text())
    assert schedule["prediction_type"] == kind and schedule.get("rescale_betas_zero_snr", False) is zero
    names = sorted(path.name for path in (tmp_path / "config").iterdir())
    assert names == sorted(
        ["model_index.json", "scheduler", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "unet", "vae"]
    )
    shutil.rmtree(tmp_path / "config")


def test_the_shipped_configurations_have_the_published_sizes() -> None:
    def count(make: Any) -> int:
        with torch.device("meta"):
            return sum(p.numel() for p in make().parameters())

    assert count(lambda: UNet2DConditionModel.from_config(single._UNET_SD15)) == 859_520_964
    assert count(lambda: UNet2DConditionModel.from_config(single._UNET_SDXL)) == 2_567_463_684
    assert count(lambda: AutoencoderKL.from_config(single._VAE)) == 83_653_863
    assert count(lambda: CLIPTextModel(CLIPTextConfig(**single._CLIP_L))) == 123_060_480
    assert count(lambda: CLIPTextModelWithProjection(CLIPTextConfig(**single._CLIP_G))) == 694_659_840


def test_merges_are_looked_for_in_order_and_named_when_absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_: None)
    monkeypatch.delenv("CLIP_TOKENIZER", raising=False)
    monkeypatch.setenv("COMFYUI_PATH", str(tmp_path / "host"))
    with pytest.raises(InputError, match=r"holds no tokenizer.*set CLIP_TOKENIZER"):
        single.clip_merges(Path("a.safetensors"))
    host = tmp_path / "host" / "comfy" / "sd1_tokenizer"
    host.mkdir(parents=True)
    (host / "merges.txt").write_text("#version: 0.2\ni n\nt h\n")
    assert single.clip_merges(Path("a.safetensors")) == ["i n", "t h"]
    (tmp_path / "merges.txt").write_text("a b\n")
    monkeypatch.setenv("CLIP_TOKENIZER", str(tmp_path))
    assert single.clip_merges(Path("a.safetensors")) == ["a b"]


def test_the_vocabulary_of_a_whole_tokenizer_has_clips_numbers(tmp_path: Path) -> None:
    """Bytes first, then bytes that end a word, then merges, then the two marks."""
    single.write_tokenizer(tmp_path, ["c a", "ca t</w>"])
    words = CLIPTokenizer.from_pretrained(tmp_path)
    assert words("a cat").input_ids == [514, 256 + 64, 513, 515]
    assert words.model_max_length == 77


# ---- the choice of layers

EVERYTHING = LayerConfig("attention+ff+conv")


def test_a_choice_of_layers_adapts_these_and_no_others(pipe: Any) -> None:
    denoiser = DiffusersDenoiser(pipe)
    stems = {which: list(denoiser.targets(LayerConfig(which))) for which in LAYERS}
    assert stems["attention"] == list(denoiser.targets())
    assert stems["self-attention"] == [stem for stem in stems["attention"] if "attn1" in stem]
    added = set(stems["attention+ff"]) - set(stems["attention"])
    assert len(added) == len(stems["attention"]) // 4 + 2 * {"sd15": 4, "sdxl": 4}[denoiser.architecture]
    assert all(re.search("ff_net_(0_proj|2)$|proj_(in|out)$", stem) for stem in added)
    convs = set(stems["attention+ff+conv"]) - set(stems["attention+ff"])
    endings = {
        "sd15": "conv1|conv2|time_emb_proj|conv_shortcut|samplers_0_conv",
        "sdxl": "in_layers_2|out_layers_3|emb_layers_1|skip_connection|op|2_conv",
    }[denoiser.architecture]
    assert {re.search(f"({endings})$", stem).group(1) for stem in convs} == set(endings.split("|"))
    left = set(modules_by_stem(pipe)) - set(stems["attention+ff+conv"])
    assert all(re.search("lora_te|time_embed|label_emb|add_embed|conv_in|conv_out|_0_0$|out_2$", s) for s in left), left
    some = denoiser.targets(LayerConfig("attention+ff+conv", include=("*attn2*", "*conv*", "*_op"), exclude=("*to_q",)))
    assert some and not any(stem.endswith("to_q") for stem in some)
    with pytest.raises(InputError, match=r"include \*attn3\*.*such names"):
        denoiser.targets(LayerConfig(include=("*attn3*",)))


def test_an_adapter_of_all_layers_predicts_as_changed_weights_do(pipe: Any, tmp_path: Path) -> None:
    denoiser = DiffusersDenoiser(pipe)
    targets = denoiser.targets(EVERYTHING)
    adapter = TriLoRA.create(targets, AdapterConfig(rank=2, layers=EVERYTHING), seed=0, data_hash="x")
    for branch in adapter.branches.values():
        branch.up.data.normal_(std=0.2, generator=torch.Generator().manual_seed(7))
    latents, noise, cond = batch(pipe)
    times = torch.tensor([10, 500, 900])
    plain, _ = denoiser.predict(latents, noise, times, cond)
    with adapter.attach(targets):
        attached, target = denoiser.predict(latents, noise, times, cond)
        (attached - target).square().mean().backward()
    assert all(b.up.grad.any() and b.sigma.grad.any() and b.down.grad.any() for b in adapter.branches.values())
    write_adapter(tmp_path / "a.safetensors", Adapter(adapter.canonical(), {}), dtype=torch.float32)
    with apply_adapter(pipe, read_adapter(tmp_path / "a.safetensors")):
        applied, _ = denoiser.predict(latents, noise, times, cond)
    with torch.no_grad():
        for stem, branch in adapter.branches.items():
            weight = targets[stem].module.weight
            weight += (branch.up @ branch.gained_down()).view_as(weight)
        changed, _ = denoiser.predict(latents, noise, times, cond)
    assert (attached - changed).norm() / changed.norm() < 1e-5 < (plain - changed).norm() / changed.norm()
    assert (applied - changed).norm() / changed.norm() < 1e-4


def test_a_model_under_peft_is_adapted_beneath_it(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    pipe = sd(tmp_path)
    plain = DiffusersDenoiser(pipe).targets(EVERYTHING)
    pipe.unet.add_adapter(peft.LoraConfig(r=2, target_modules=["to_q", "conv1"], init_lora_weights=False))
    under = DiffusersDenoiser(pipe).targets(EVERYTHING)
    assert list(under) == list(plain)
    assert all(target.module is plain[stem].module for stem, target in under.items())
    assert set(modules_by_stem(pipe)) >= set(under)
