"""Widgets of TriLoRA Optimizer Options about rates and loss: optional, and the last ones of the node."""

from __future__ import annotations

from comfy_api.latest import io

from ..trilora_core.config import DRAWS, PRESERVES

__all__ = ["loss_inputs", "preserve_inputs", "rate_inputs", "text_inputs", "time_inputs"]


def rate_inputs() -> list[io.Input]:
    """The rates of the three factors, and the mean over the steps."""
    of_factor = {
        "up_rate": "the up factor, which starts at 0",
        "sigma_rate": "the singular values",
        "down_rate": "the down factor, which starts random",
    }
    rates: list[io.Input] = [
        io.Float.Input(
            name,
            default=1.0,
            min=0.0,
            max=1000.0,
            step=0.05,
            round=False,
            optional=True,
            tooltip=f"Learning rate of {what}, as a multiple of learning_rate. 0 holds it as it is.",
        )
        for name, what in of_factor.items()
    ]
    ema = io.Float.Input(
        "ema",
        default=0.0,
        min=0.0,
        max=0.9999,
        step=0.001,
        round=False,
        optional=True,
        tooltip="Decay of a running mean of the adapter over the steps, which is saved in place of the last step. 0.99 "
        "evens out the last hundred steps. 0: off.",
    )
    return [*rates, ema]


def text_inputs() -> list[io.Input]:
    """The rate of the text encoders."""
    return [
        io.Float.Input(
            "text_encoder_rate",
            default=0.0,
            min=0.0,
            max=1000.0,
            step=0.05,
            round=False,
            optional=True,
            tooltip="Trains the data set's clip too (SD 1.5, SDXL): its learning rate as a multiple of learning_rate. "
            "0.1 to 0.5 helps new words and subjects; more forgets what other words mean. Takes more time and memory. "
            "0: the clip is not trained.",
        ),
    ]


def time_inputs() -> list[io.Input]:
    """How much noise the pictures of a step get."""
    return [
        io.Combo.Input(
            "timesteps",
            options=list(DRAWS),
            default="auto",
            optional=True,
            tooltip="How much noise the pictures of a step get. auto: as the model was trained, logit-normal for SD3 "
            "and Flux, uniform for the others. uniform: all amounts alike. logit-normal: mostly the "
            "middle ones, as SD3 was trained. shifted: more noise, as for large pictures in SD3 and Flux.",
        ),
        io.Float.Input(
            "logit_mean",
            default=0.0,
            min=-5.0,
            max=5.0,
            step=0.1,
            optional=True,
            tooltip="With logit-normal times, chosen or by auto: above 0 more noise, below 0 less.",
        ),
        io.Float.Input(
            "logit_std",
            default=1.0,
            min=0.05,
            max=5.0,
            step=0.05,
            optional=True,
            tooltip="With logit-normal times, chosen or by auto: how far the amounts of noise spread.",
        ),
        io.Float.Input(
            "shift",
            default=3.0,
            min=0.05,
            max=20.0,
            step=0.05,
            optional=True,
            tooltip="With timesteps at shifted: above 1 more noise, below 1 less.",
        ),
    ]


def loss_inputs() -> list[io.Input]:
    """What is added to the loss, or weighs it."""
    return [
        io.Float.Input(
            "min_snr_gamma",
            default=0.0,
            min=0.0,
            max=100.0,
            step=0.5,
            optional=True,
            tooltip="Limits how much steps of little noise count (min-SNR); 5 is usual, and learns sooner. 0: off.",
        ),
        io.Float.Input(
            "noise_offset",
            default=0.0,
            min=0.0,
            max=1.0,
            step=0.01,
            optional=True,
            tooltip="Noise that is the same all over a picture, so that very dark and very bright pictures can be "
            "learnt. 0.05 is usual. 0: off.",
        ),
        io.Float.Input(
            "orthogonality",
            default=0.0,
            min=0.0,
            max=100.0,
            step=0.001,
            round=False,
            optional=True,
            tooltip="Weight of a penalty on directions of the adapter that overlap. 0.001 to 0.1. 0: off.",
        ),
    ]


def preserve_inputs() -> list[io.Input]:
    """What the base model is to keep."""
    return [
        io.Combo.Input(
            "preserve_base",
            options=list(PRESERVES),
            default="off",
            optional=True,
            tooltip="Hold on to what the model draws for other prompts. light and strong: the model is asked once, "
            "before training, what it makes of other captions, and is kept to it while it learns; no pictures are "
            "needed, a step takes up to a third longer. light costs little of what is learned; strong leaves about "
            "half as much change, and learns a style less closely. Needs the clip of the data set. Without it, a style "
            "or a subject seeps into every picture.",
        ),
        io.String.Input(
            "preserve_prompts",
            default="",
            multiline=True,
            optional=True,
            tooltip="With preserve_base: what is to stay, one prompt per line, without the trigger word. Empty: about "
            "a hundred captions of everyday things. A dozen narrow ones protect little else.",
        ),
    ]
