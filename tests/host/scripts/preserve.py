"""What the host's own models are to keep: asked, trained with, interrupted, resumed; and the model afterwards."""

from __future__ import annotations

from contextlib import closing, suppress
from dataclasses import replace
from importlib import import_module
from typing import Any

import torch

from . import bridge_training as training
from . import bridge_training_models as small

TEXTS = ("a house", "a cat at night", "rain")


def main(pack: Any, arguments: dict[str, Any]) -> dict[str, Any]:
    """Measures for each kind of model in arguments["kinds"]."""
    return {kind: _Kind(pack, kind).measured() for kind in arguments["kinds"]}


class _Kind:
    """One kind of model with a few latents and captions of it."""

    def __init__(self, pack: Any, kind: str) -> None:
        def load(name: str) -> Any:
            return import_module(name, pack.__name__)

        self.kind, self.patcher = kind, small.load(kind)
        self.host, self.within = load(".nodes.host.denoiser"), load(".nodes.host.training")
        self.preserve, self.train = load(".trilora_core.preserve"), load(".trilora_core.train")
        self.config, self.core = load(".trilora_core.config"), load(".trilora_core.adapter")
        data = load(".trilora_core.data")
        self.store = data.MemoryStore()
        generator = torch.Generator().manual_seed(3)
        latents = [torch.randn(small.channels(kind), 8, 8, generator=generator) for _ in range(4)]
        self.data = data.load_tensors(latents, [small.condition(kind, seed) for seed in range(4)])
        for index in range(len(TEXTS)):
            self.store.put(f"caption {index}", small.condition(kind, 10 + index))
        self.before = training._contents(self.patcher.model), training._objects(self.patcher.model)

    def untouched(self) -> bool:
        model = self.patcher.model
        return (training._contents(model), training._objects(model)) == self.before and training._clean(model)

    def kept(self, denoiser: Any, progress: Any = None) -> Any:
        keys = tuple(f"caption {index}" for index in range(len(TEXTS)))
        captions = self.preserve.Captions(TEXTS, keys, self.store)
        amount = self.preserve.Amount(weight=2.0, points=3, paths=6)
        return self.preserve.keep(denoiser, captions, self.data, amount, denoiser.device, progress=progress)

    def run(self, denoiser: Any, kept: Any) -> Any:
        config = self.config.TrainConfig(
            steps=5,
            batch_size=3,
            seed=1,
            adapter=self.config.AdapterConfig(rank=2),
            optimizer=self.config.OptimizerConfig(learning_rate=1e-2),
            preserve=self.config.PreserveConfig("strong", TEXTS),
        )
        adapter = self.core.TriLoRA.create(denoiser.targets(), config.adapter, seed=1, data_hash="x")
        return self.train.Run(config, denoiser, self.data, adapter, kept=kept)

    def go(self, run: Any, count: int) -> list[Any]:
        with run.trainable.attach(run.targets()), closing(self.train.train(run)) as steps:
            for _, _step in zip(range(count), steps, strict=False):
                pass
        return [parameter.detach().clone() for _, parameter in run.trainable.named_parameters()]

    def measured(self) -> dict[str, Any]:
        interrupt = import_module("comfy.model_management").InterruptProcessingException
        answer: dict[str, Any] = {}

        def stop(done: int, total: int) -> None:
            if done > 2:
                raise interrupt

        with suppress(interrupt), self.within.training(self.patcher):
            self.kept(self.host.HostDenoiser(self.patcher), stop)
            raise AssertionError("nothing was interrupted")
        answer["untouched_after_interrupt"] = self.untouched()
        with self.within.training(self.patcher):
            denoiser = self.host.HostDenoiser(self.patcher)
            kept = self.kept(denoiser)
            answer |= self._points(denoiser, kept)
            whole = self.run(denoiser, kept)
            parameters = self.go(whole, 5)
            first, resumed = self.run(denoiser, kept), self.run(denoiser, kept)
            self.go(first, 2)
            tensors, values = first.state()
            resumed.load_state({name: tensor.clone() for name, tensor in tensors.items()}, values)
            again = self.go(resumed, 3)
            answer["resumed_equals"] = all(torch.equal(a, b) for a, b in zip(parameters, again, strict=True))
            answer["losses"] = whole.losses
        answer["untouched"] = self.untouched()
        return answer

    @torch.no_grad()
    def _points(self, denoiser: Any, kept: Any) -> dict[str, Any]:
        """How far a kept prediction is from what the model says now, and latents from their way in and out."""
        row = kept.row(4, 1.0)
        found, _ = denoiser.predict(row.sample.latents[None], row.noise[None], denoiser.times(row.u), [row.sample.cond])
        wrong = (found[0].cpu() - row.target).norm() / row.target.norm()
        latents = replace(row.sample).latents[None]
        back = denoiser.raw(denoiser.model.process_latent_in(latents))
        return {
            "points": len(kept.points),
            "wrong": float(wrong),
            "back": float((back - latents).abs().max()),
            "finite": all(bool(torch.isfinite(kept.row(i, 1.0).sample.latents).all()) for i in range(18)),
        }
