"""The text encoders of tiny diffusers pipelines as a run trains them: the same captions, gradients, layers, files."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("diffusers", reason="the diffusers backend is not tested: pip install -e .[standalone]")
pytest.importorskip("transformers", reason="the diffusers backend is not tested: pip install -e .[standalone]")

from tests.adapters import dense, relative_error
from tests.test_backend_diffusers import sd, sdxl
from trilora_core.adapter import TriLoRA
from trilora_core.backend_diffusers import (
    DiffusersDenoiser,
    DiffusersEncoder,
    DiffusersPreviewer,
    DiffusersTextEncoder,
    apply_adapter,
)
from trilora_core.backend_diffusers_apply import text_modules
from trilora_core.backend_diffusers_text import find_overlong
from trilora_core.config import LAYERS, AdapterConfig, LayerConfig
from trilora_core.data.framing import Frame
from trilora_core.errors import InputError
from trilora_core.fileformat import Adapter, read_adapter, write_adapter
from trilora_core.keys import is_text
from trilora_core.protocols import TextEncoder
from trilora_core.recompute import checkpointed

TEXTS = ["a fox", "at", "", "a fox at the fox"]
FRAME = Frame(size=(16, 16), box=(2, 0, 18, 16), flip=False, original=(40, 32))
FF = LayerConfig("attention+ff")


@pytest.fixture(params=["sd15", "sdxl"])
def pipe(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    return (sd if request.param == "sd15" else sdxl)(tmp_path)


def cached(pipe: Any, texts: list[str] = TEXTS) -> list[Any]:
    encoder = DiffusersEncoder(pipe)
    return [encoder.placed(cond, FRAME) for cond in encoder.captions(texts)]


@torch.no_grad()
def filled(text: DiffusersTextEncoder, layers: LayerConfig = FF) -> TriLoRA:
    """An adapter of all these layers that changes each of them."""
    adapter = TriLoRA.create(text.targets(layers), AdapterConfig(rank=2), seed=0, data_hash="")
    for index, branch in enumerate(adapter.branches.values()):
        branch.up.normal_(std=0.1, generator=torch.Generator().manual_seed(index))
    return adapter


def parts(cond: list[Any]) -> list[Tensor]:
    return [tensor for entry in cond for tensor in (entry["tokens"], entry["pooled"]) if tensor is not None]


def test_the_protocol_is_met(pipe: Any) -> None:
    assert isinstance(DiffusersTextEncoder(pipe), TextEncoder)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_captions_are_the_very_bits_that_are_encoded_beforehand(pipe: Any, dtype: torch.dtype) -> None:
    pipe.to(dtype=dtype)
    before, text = cached(pipe), DiffusersTextEncoder(pipe)
    adapter = TriLoRA.create(text.targets(FF), AdapterConfig(rank=2), seed=0, data_hash="")
    assert text.compute_dtype is dtype
    found = [text.encode(TEXTS, before)]
    with adapter.attach(text.targets(FF)):  # its start changes nothing
        found.append(text.encode(TEXTS, before))
        with checkpointed(text.blocks(), in_place_safe=True):
            found.append(text.encode(TEXTS, before))
    for now in found:
        assert [entry.keys() for entry in now] == [entry.keys() for entry in before]
        assert all(entry.get("place") == old.get("place") for entry, old in zip(now, before, strict=True))
        assert len(parts(now)) == len(parts(before))
        for one, other in zip(parts(now), parts(before), strict=True):
            assert one.dtype is dtype and torch.equal(one.detach(), other)
    assert all(tensor.requires_grad for tensor in parts(found[1]))
    assert ("place" in before[0]) == (pipe.unet.config.addition_embed_type is not None)


def test_equal_captions_are_encoded_once(pipe: Any) -> None:
    text, calls = DiffusersTextEncoder(pipe), []
    handle = pipe.text_encoder.register_forward_hook(lambda module, args, output: calls.append(args))
    found = text.encode(["a fox", "at", "a fox"], [{"place": number} for number in range(3)])
    handle.remove()
    assert len(calls) == 2 and [entry["place"] for entry in found] == [0, 1, 2]
    assert found[0]["tokens"] is found[2]["tokens"] and found[0]["tokens"] is not found[1]["tokens"]


def test_captions_whose_end_is_cut_off_are_found(pipe: Any) -> None:
    """The tokenizer takes 12, of which two are its marks of start and end."""
    full = "a " * 5
    assert find_overlong(pipe, ["a fox", full + "a a a a a", full * 2 + "b", full * 2 + "b"]) == ({full * 2 + "b"}, 10)
    first, second = DiffusersEncoder(pipe).captions([full * 2, full * 2 + "b"])
    assert torch.equal(first["tokens"], second["tokens"]), "what stands behind is not seen"


def loss_of(pipe: Any, cond: list[Any]) -> Tensor:
    """Of one prediction of the U-Net: what reaches the encoders is what it reads of them."""
    denoiser = DiffusersDenoiser(pipe)
    generator = torch.Generator().manual_seed(3)
    latents, noise = (torch.randn(len(cond), 4, 8, 8, generator=generator) for _ in range(2))
    prediction, target = denoiser.predict(latents, noise, torch.full((len(cond),), 500), cond)
    return (prediction - target).square().mean()


def gradients(pipe: Any, text: DiffusersTextEncoder, adapter: TriLoRA, *, recompute: bool = False) -> dict[str, Tensor]:
    cond = cached(pipe)
    with adapter.attach(text.targets(FF)), checkpointed(text.blocks() if recompute else [], in_place_safe=True):
        loss_of(pipe, text.encode(TEXTS, cond)).backward()
    found = {name: parameter.grad for name, parameter in adapter.named_parameters()}
    for parameter in adapter.trainable():
        parameter.grad = None
    return found


def test_gradients_are_those_of_the_written_out_weights(pipe: Any) -> None:
    """Each factor against autograd through W0 + ΔW; every layer that is offered gets one."""
    text = DiffusersTextEncoder(pipe)
    adapter = filled(text)
    found = gradients(pipe, text, adapter)
    targets, before = text.targets(FF), cached(pipe)
    for stem, branch in adapter.branches.items():
        module = targets[stem].module
        weight = module.weight.detach()
        del module.weight
        module.weight = weight + branch.up @ branch.gained_down()
    loss = loss_of(pipe, text.encode(TEXTS, before))
    names, parameters = zip(*adapter.named_parameters(), strict=True)
    for name, wanted in zip(names, torch.autograd.grad(loss, parameters), strict=True):
        assert float(wanted.norm()) > 0, name
        assert relative_error(found[name], wanted) < 1e-4, name


def test_recomputed_gradients_are_the_same(pipe: Any) -> None:
    """To the bit, but for the layers of SDXL's second encoder below the state that is read: three ways lead out of it,
    and their gradients are added up in another order."""
    text = DiffusersTextEncoder(pipe)
    adapter = filled(text)
    plain, again = gradients(pipe, text, adapter), gradients(pipe, text, adapter, recompute=True)
    for name, gradient in plain.items():
        same = torch.equal(again[name], gradient)
        assert same or ("lora_te2" in name and "layers_0_" in name and relative_error(again[name], gradient) < 1e-6)


def test_layers_that_cannot_learn_are_left_out(pipe: Any) -> None:
    """SDXL reads the last layer but one, and behind the last one only the pooled caption of the second encoder."""
    text = DiffusersTextEncoder(pipe)
    counts = [len(text.targets(LayerConfig(which))) for which in LAYERS]
    xl = pipe.unet.config.addition_embed_type is not None
    assert counts == ([12, 12, 18, 18] if xl else [8, 8, 12, 12])
    left_out = [
        module for stem, module in text_modules(pipe).items() if "lora_te1_text_model_encoder_layers_1_" in stem
    ]
    assert len(left_out) == (6 if xl else 0)
    before = parts(cached(pipe))
    with torch.no_grad():
        for module in left_out:
            module.weight.mul_(-2)
    assert all(torch.equal(one, other) for one, other in zip(parts(cached(pipe)), before, strict=True))
    with torch.no_grad():
        for target in text.targets(FF).values():
            weight = target.module.weight.clone()
            target.module.weight.mul_(-2)
            assert not all(torch.equal(one, other) for one, other in zip(parts(cached(pipe)), before, strict=True))
            target.module.weight.copy_(weight)


def test_patterns_that_leave_nothing_are_named(pipe: Any) -> None:
    with pytest.raises(InputError, match="leave no layer of the text encoders: exclude lora_te"):
        DiffusersTextEncoder(pipe).targets(LayerConfig(exclude=("lora_te*",)))


def test_nothing_of_the_base_learns_or_stays_changed(pipe: Any) -> None:
    text = DiffusersTextEncoder(pipe)
    adapter, state = filled(text), {n: v.clone() for n, v in pipe.text_encoder.state_dict().items()}
    gradients(pipe, text, adapter, recompute=True)
    assert not any(p.requires_grad or p.grad is not None for p in pipe.text_encoder.parameters())
    assert all(torch.equal(value, state[name]) for name, value in pipe.text_encoder.state_dict().items())
    assert not any(target.module._forward_hooks for target in text.targets(FF).values())
    # transformers 5.0 leaves the method itself there; what recomputes is a partial
    assert not any(isinstance(vars(block).get("forward"), partial) for block in text.blocks())


def test_previews_draw_with_the_encoder_as_it_is(pipe: Any) -> None:
    previewer, text = DiffusersPreviewer(pipe, steps=2, resolution=16), DiffusersTextEncoder(pipe)
    plain = previewer.preview(["a fox"], [0])[0]
    with torch.no_grad():
        adapter = filled(text)
        for branch in adapter.branches.values():
            branch.up.mul_(30)
    with adapter.attach(text.targets(FF)):
        changed = previewer.preview(["a fox"], [0])[0]
    assert changed.tobytes() != plain.tobytes()
    assert previewer.preview(["a fox"], [0])[0].tobytes() == plain.tobytes()


def save(pipe: Any, path: Path) -> tuple[DiffusersTextEncoder, TriLoRA, Adapter]:
    text = DiffusersTextEncoder(pipe)
    adapter = filled(text)
    architecture = "sdxl" if pipe.unet.config.addition_embed_type else "sd15"
    write_adapter(path, Adapter(adapter.canonical(), {"trilora.architecture": architecture}), dtype=torch.float32)
    return text, adapter, read_adapter(path)


def test_a_file_applies_as_it_trained(pipe: Any, tmp_path: Path) -> None:
    text, adapter, read = save(pipe, tmp_path / "a.safetensors")
    assert set(read.layers) == set(text.targets(FF)) and all(map(is_text, read.layers))
    with torch.no_grad(), adapter.attach(text.targets(FF)):
        trained = parts(cached(pipe))
    plain = parts(cached(pipe))
    with apply_adapter(pipe, read):
        applied = parts(cached(pipe))
    for one, other, base in zip(applied, trained, plain, strict=True):
        assert relative_error(one, other) < 1e-5 < relative_error(one, base)


def test_diffusers_own_loader_reads_the_same_change(pipe: Any, tmp_path: Path) -> None:
    pytest.importorskip("peft")
    text, _, read = save(pipe, tmp_path / "a.safetensors")
    modules = {stem: target.module for stem, target in text.targets(FF).items()}
    before = {stem: module.weight.clone() for stem, module in modules.items()}
    untouched = {stem: module.weight.clone() for stem, module in text_modules(pipe).items() if stem not in modules}
    pipe.load_lora_weights(tmp_path, weight_name="a.safetensors")
    pipe.fuse_lora()
    pipe.unload_lora_weights()
    for stem, module in modules.items():
        assert relative_error(module.weight - before[stem], dense(read.layers[stem])) < 1e-5, stem
    after = text_modules(pipe)
    assert all(torch.equal(after[stem].weight, weight) for stem, weight in untouched.items())
