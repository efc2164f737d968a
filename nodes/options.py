"""The node for the settings of training that most people leave alone."""

from __future__ import annotations

from dataclasses import replace

from comfy_api.latest import io

from ..trilora_core.config import (
    INITS,
    METHODS,
    OPTIMIZERS,
    PRECISIONS,
    SCHEDULES,
    LossConfig,
    PreserveConfig,
    TrainConfig,
)
from .loss_inputs import loss_inputs, preserve_inputs, rate_inputs, text_inputs, time_inputs
from .sockets import CATEGORY, OptionsSocket

__all__ = ["TriLoRAOptimizerOptions"]

OPTIMIZER_TIP = (
    "How gradients become steps. adamw: Adam with weight decay, for most runs. adafactor: less memory for its state. "
    "prodigy: finds its own rate, with learning_rate 1. schedulefree: needs no schedule. lion: a third to a tenth of "
    "the learning rate of adamw. adamw8bit: AdamW with a quarter of the state, on graphics cards. The last four need a "
    "library, which the error names."
)
INIT_TIP = (
    "How the singular values of the adapter start, from the largest ones of each base weight. svd-mean: divided by "
    "their mean, so that the learning rate means what it means for LoRA. svd: raw, as in the paper; this multiplies "
    "the effective learning rate of the up factor by each singular value, because the optimizer "
    "cancels the scale of a gradient but not that of the forward pass, so lower "
    "learning_rate with it. svd-max: divided by the largest one. "
    "svd-fro: divided by the norm of the weight, small values. ones: all 1, trained from there. "
    "contrast: as svd-mean, and the other factors start with what sets the data set apart from other prompts, an "
    "experiment; needs TriLoRA Calibrate at calibration of Train TriLoRA."
)


class TriLoRAOptimizerOptions(io.ComfyNode):
    """How training moves the adapter."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Ids and names are fixed: saved workflows hold them. New widgets go last."""
        return io.Schema(
            node_id="TriLoRAOptimizerOptions",
            display_name="TriLoRA Optimizer Options",
            category=CATEGORY,
            description="Settings of Train TriLoRA that most people leave alone.",
            inputs=[
                *_adapter_inputs(),
                *_optimizer_inputs(),
                *_run_inputs(),
                *_data_inputs(),
                *rate_inputs(),
                *time_inputs(),
                *loss_inputs(),
                *text_inputs(),
                *preserve_inputs(),
            ],
            outputs=[OptionsSocket.Output(display_name="options", tooltip="To Train TriLoRA.")],
        )

    @classmethod
    def execute(
        cls,
        init: str,
        method: str,
        alpha: float,
        companion_rank: int,
        optimizer: str,
        schedule: str,
        warmup_steps: int,
        weight_decay: float,
        clip_norm: float,
        accumulation: int,
        precision: str,
        gradient_checkpointing: bool,
        save_every: int,
        rank_energy: float = 0.0,
        options: TrainConfig | None = None,
        epochs: int = 0,
        prior_weight: float = 1.0,
        prior_batch_size: int = 1,
        up_rate: float = 1.0,
        sigma_rate: float = 1.0,
        down_rate: float = 1.0,
        ema: float = 0.0,
        timesteps: str = "auto",
        logit_mean: float = 0.0,
        logit_std: float = 1.0,
        shift: float = 3.0,
        min_snr_gamma: float = 0.0,
        noise_offset: float = 0.0,
        orthogonality: float = 0.0,
        text_encoder_rate: float = 0.0,
        preserve_base: str = "off",
        preserve_prompts: str = "",
    ) -> io.NodeOutput:
        """Set this node's fields; the others stay as `options` had them."""
        base = options or TrainConfig()
        adapter = replace(base.adapter, init=init, method=method, alpha=alpha or None, companion_rank=companion_rank)
        if rank_energy > 0.0:
            adapter = replace(adapter, rank=f"energy:{rank_energy:g}")
        elif isinstance(adapter.rank, str):  # the energy of a node before this one
            adapter = replace(adapter, rank=TrainConfig().adapter.rank)
        moves = replace(
            base.optimizer,
            name=optimizer,
            schedule=schedule,
            warmup_steps=warmup_steps,
            weight_decay=weight_decay,
            clip_norm=clip_norm,
            accumulation=accumulation,
            up_rate=up_rate,
            sigma_rate=sigma_rate,
            down_rate=down_rate,
            text_encoder_rate=text_encoder_rate,
        )
        loss = LossConfig(timesteps, logit_mean, logit_std, shift, min_snr_gamma, noise_offset, orthogonality)
        lines = tuple(line.strip() for line in preserve_prompts.splitlines() if line.strip())
        run = replace(
            base,
            adapter=adapter,
            optimizer=moves,
            loss=loss,
            precision=precision,
            gradient_checkpointing=gradient_checkpointing,
            save_every=save_every,
            epochs=epochs,
            prior_weight=prior_weight,
            prior_batch_size=prior_batch_size,
            ema=ema,
            preserve=PreserveConfig(preserve_base, lines),
        )
        return io.NodeOutput(run)


def _adapter_inputs() -> list[io.Input]:
    return [
        io.Combo.Input("init", options=list(INITS), default="svd-mean", tooltip=INIT_TIP),
        io.Combo.Input(
            "method",
            options=list(METHODS),
            default="trilora",
            tooltip="trilora: singular values are trained too. lora: they stay at 1, the plain method, to compare.",
        ),
        io.Float.Input(
            "alpha",
            default=0.0,
            min=0.0,
            max=1024.0,
            step=0.5,
            tooltip="Scale of the change is alpha / rank. 0: alpha is the rank, so the scale is 1. "
            "Take half the rank to halve what one step does.",
        ),
        io.Int.Input(
            "companion_rank",
            default=0,
            min=0,
            max=128,
            tooltip="Rank of a second, smaller plain adapter that is trained along and folded into the result, as "
            "in the paper. 0: none.",
        ),
    ]


def _optimizer_inputs() -> list[io.Input]:
    return [
        io.Combo.Input("optimizer", options=list(OPTIMIZERS), default="adamw", tooltip=OPTIMIZER_TIP),
        io.Combo.Input(
            "schedule",
            options=list(SCHEDULES),
            default="constant",
            tooltip="Course of the learning rate after warm-up. constant: stays. cosine and linear: fall to 0 at the "
            "last step, which helps long runs.",
        ),
        io.Int.Input(
            "warmup_steps",
            default=0,
            min=0,
            max=100000,
            tooltip="Optimizer steps in which the learning rate climbs from 0. 10 to 100 if the loss jumps at first.",
        ),
        io.Float.Input(
            "weight_decay",
            default=0.01,
            min=0.0,
            max=100.0,
            step=0.001,
            round=False,
            tooltip="Pull of the up and down factors towards 0; the singular values are never decayed. "
            "More if the result copies its pictures or changes too much else.",
        ),
        io.Float.Input(
            "clip_norm",
            default=1.0,
            min=0.0,
            max=1000.0,
            step=0.1,
            tooltip="Longest gradient that is let through, as a norm over all layers. 0: no limit.",
        ),
        io.Int.Input(
            "accumulation",
            default=1,
            min=1,
            max=1024,
            tooltip="Batches per optimizer step: 4 with batch_size 1 learns like batch_size 4, with less memory.",
        ),
    ]


def _run_inputs() -> list[io.Input]:
    return [
        io.Combo.Input(
            "precision",
            options=list(PRECISIONS),
            default="auto",
            tooltip="Number format of the forward pass. auto: as the model computes by itself. bf16, fast on recent "
            "cards, and fp16 lower a model that computes in fp32; fp32 makes sure that one does. A model that computes "
            "in fp16 or bf16 is changed by ModelComputeDtype behind its loader.",
        ),
        io.Boolean.Input(
            "gradient_checkpointing",
            default=False,
            tooltip="On: much less memory, about a third more time, the same result. For large models on small cards.",
        ),
        io.Int.Input(
            "save_every",
            default=0,
            min=0,
            max=1000000,
            tooltip="Optimizer steps between two saves of a state that resume can go on from. "
            "0: only when the run ends or is stopped.",
        ),
        io.Float.Input(
            "rank_energy",
            default=0.0,
            min=0.0,
            max=1.0,
            step=0.05,
            optional=True,
            tooltip="0: every layer has the rank of Train TriLoRA. 0.9: each layer takes the smallest rank that holds "
            "90% of the energy of its base weight, up to the rank of Train TriLoRA.",
        ),
        OptionsSocket.Input(
            "options",
            optional=True,
            tooltip="Options of another node: this one sets its own fields and keeps the rest.",
        ),
    ]


def _data_inputs() -> list[io.Input]:
    return [
        io.Int.Input(
            "epochs",
            default=0,
            min=0,
            max=100_000,
            optional=True,
            tooltip="Passes over the data set, repeats included, in place of the steps of Train TriLoRA. 0: its steps.",
        ),
        io.Float.Input(
            "prior_weight",
            default=1.0,
            min=0.0,
            max=100.0,
            step=0.05,
            optional=True,
            tooltip="Weight of the loss of the prior pictures beside that of the data set. More keeps the model's idea "
            "of the class, less learns the subject faster. Without prior pictures it does nothing.",
        ),
        io.Int.Input(
            "prior_batch_size",
            default=1,
            min=1,
            max=1024,
            optional=True,
            tooltip="Prior pictures beside each batch. Without prior pictures it does nothing.",
        ),
    ]
