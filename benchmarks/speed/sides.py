"""One training step, three ways on the same frozen weights: the least there is to do, this package's loop, and PEFT's.

Each side is a context that gives a function; a call of it is one step.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import models
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trilora_core.adapter import TriLoRA
from trilora_core.config import AdapterConfig, LayerConfig, TrainConfig
from trilora_core.recompute import checkpointed
from trilora_core.train import Run, train

PEFT_NAMES = {
    "attention": ["to_q", "to_k", "to_v", "to_out.0"],
    "attention+ff": ["to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2"],
}
RANDOM = random.Random(0)
Step = Callable[[], None]


@dataclass(frozen=True)
class Case:
    """What is trained: `side` is that of the latents, an eighth of the picture's."""

    model: str = "reduced"
    side: int = 16
    batch: int = 1
    rank: int = 16
    layers: str = "attention"
    pictures: int = 32
    recomputed: bool = False

    @property
    def name(self) -> str:
        return " ".join(f"{key}={value}" for key, value in asdict(self).items())


class Bench:
    """The frozen weights of a case, once, however many sides use them."""

    def __init__(self, case: Case, device: str = "cpu", dtype: torch.dtype = torch.float32) -> None:
        self.case, self.device, self.dtype = case, torch.device(device), dtype
        self.unet = models.unet(case.model, device, dtype)
        self.data = models.dataset(self.unet, case.side, case.pictures)
        self.denoiser = models.denoiser(self.unet)

    def like(self, case: Case) -> Bench:
        """The same model with another case."""
        other = copy.copy(self)
        other.case = case
        other.data = models.dataset(self.unet, case.side, case.pictures)
        return other

    def with_model(self, model: Any) -> Bench:
        """The same case with another U-Net."""
        other = copy.copy(self)
        other.unet, other.denoiser = model, models.denoiser(model)
        return other

    def twin(self) -> Any:
        """Another U-Net over the same weights, so that sides do not meet each other's hooks and modules."""
        memo: dict[int, Any] = {id(tensor): tensor for tensor in (*self.unet.parameters(), *self.unet.buffers())}
        return copy.deepcopy(self.unet, memo)

    def batch(self, number: int) -> tuple[Tensor, Tensor, Tensor, Tensor, Any]:
        """(latents, noise, times, tokens, SDXL's own) of one batch on the device."""
        case, place = self.case, {"device": self.device, "dtype": self.dtype}
        rows = [self.data.sample((number * case.batch + i) % case.pictures, RANDOM) for i in range(case.batch)]
        latents = torch.stack([row.latents for row in rows]).to(**place)
        tokens = torch.stack([row.cond["tokens"] for row in rows]).to(**place)
        times = torch.randint(0, 1000, (case.batch,), device=self.device)
        added = None
        if rows[0].cond["pooled"] is not None:
            pooled = torch.stack([row.cond["pooled"] for row in rows]).to(**place)
            sizes = torch.tensor([[8.0 * case.side] * 2 + [0.0] * 2 + [8.0 * case.side] * 2] * case.batch).to(**place)
            added = {"text_embeds": pooled, "time_ids": sizes}
        return latents, torch.randn_like(latents), times, tokens, added


@contextmanager
def here(bench: Bench) -> Iterator[Step]:
    """This package's loop as the command line and the node run it."""
    case = bench.case
    adapter = AdapterConfig(rank=case.rank, layers=LayerConfig(case.layers), init="ones")  # the start is timed apart
    config = TrainConfig(steps=10**6, batch_size=case.batch, gradient_checkpointing=case.recomputed, adapter=adapter)
    trainable = TriLoRA.create(bench.denoiser.targets(adapter.layers), adapter, seed=0, data_hash="")
    run = Run(config, bench.denoiser, bench.data, trainable)
    with ExitStack() as stack:
        stack.enter_context(trainable.attach(run.targets()))
        if case.recomputed:
            stack.enter_context(checkpointed(run.blocks(), in_place_safe=bench.denoiser.in_place_safe))
        steps = stack.enter_context(closing(train(run)))
        yield lambda: next(steps) and None


@contextmanager
def floor(bench: Bench) -> Iterator[Step]:
    """The frozen forward, and backward to the output of every adapted layer: nothing can be adapted for less.

    A hand-written minimum: no adapter, no optimizer, no clipping, no weight gradient. What autograd then computes and
    stores is what the gradient of any parameter added to those outputs needs, below the layers of recomputed blocks
    too.
    """
    model = bench.twin()
    places = {id(module): name for name, module in bench.unet.named_modules()}

    def of_twin(module: nn.Module) -> nn.Module:
        return model.get_submodule(places[id(module)])

    with ExitStack() as stack:
        for target in bench.denoiser.targets(LayerConfig(bench.case.layers)).values():
            stack.callback(of_twin(target.module).register_forward_hook(_asks_for_a_gradient).remove)
        if bench.case.recomputed:
            stack.enter_context(checkpointed(map(of_twin, bench.denoiser.blocks()), in_place_safe=True))
        yield _step(bench, model, lambda: None)


def _asks_for_a_gradient(_module: nn.Module, _args: tuple[Tensor, ...], output: Tensor) -> None:
    if torch.is_grad_enabled() and not output.requires_grad:
        output.requires_grad_(True)


@contextmanager
def peft(bench: Bench) -> Iterator[Step]:
    """PEFT's layers in diffusers, trained as diffusers' own LoRA example does: AdamW, clipping, the loss read."""
    from peft import LoraConfig

    case, model = bench.case, bench.twin()
    names = PEFT_NAMES[case.layers]
    model.add_adapter(LoraConfig(r=case.rank, lora_alpha=case.rank, init_lora_weights="gaussian", target_modules=names))
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in parameters:
        parameter.data = parameter.data.float()  # diffusers: cast_training_params
    if case.recomputed:
        model.enable_gradient_checkpointing()
        model.train()
    optimizer = torch.optim.AdamW(parameters, lr=1e-4)

    def update() -> None:
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()

    half = bench.dtype is not torch.float32
    yield _step(bench, model, update, torch.autocast(bench.device.type, bench.dtype, enabled=half))


def _step(bench: Bench, model: Any, update: Step, autocast: AbstractContextManager[Any] | None = None) -> Step:
    alphas = bench.denoiser.alphas.to(bench.device)
    number = 0

    def step() -> None:
        nonlocal number
        latents, noise, times, tokens, added = bench.batch(number)
        number += 1
        alpha = alphas[times].view(-1, 1, 1, 1).to(latents.dtype)
        noisy = alpha.sqrt() * latents + (1 - alpha).sqrt() * noise
        with autocast or ExitStack():
            found = model(noisy, times, encoder_hidden_states=tokens, added_cond_kwargs=added, return_dict=False)[0]
        loss = F.mse_loss(found.float(), noise.float())
        loss.backward()
        update()
        loss.item()

    return step


SIDES: dict[str, Callable[[Bench], AbstractContextManager[Step]]] = {"floor": floor, "here": here, "peft": peft}
