"""The options of learning: the optimizer, the mean of its steps, and what is minimised."""

from __future__ import annotations

from ..config import DRAWS, OPTIMIZERS, PRESERVES, SCHEDULES, TrainConfig
from .options import Given, Refines, option, refuse_idle
from .parser import OneLineParser, whole

__all__ = ["add_learning_options", "check_learning"]

_REFINES: dict[str, Refines[TrainConfig]] = {
    "optimizer.sigma_rate": Refines("--sigma-rate", "--method trilora", lambda run: run.adapter.method == "trilora"),
    "loss.logit_mean": Refines("--logit-mean", "--timesteps logit-normal", lambda run: _draws(run, "logit-normal")),
    "loss.logit_std": Refines("--logit-std", "--timesteps logit-normal", lambda run: _draws(run, "logit-normal")),
    "preserve.prompts": Refines(
        "--preserve-prompts", "--preserve-base light or strong", lambda run: run.preserve.base != "off"
    ),
    "loss.shift": Refines("--shift", "--timesteps shifted", lambda run: _draws(run, "shifted")),
}


def add_learning_options(parser: OneLineParser) -> None:
    """Declare how the adapter learns."""
    _add_optimizer(parser)
    _add_loss(parser)
    _add_preserve(parser)


def _add_preserve(parser: OneLineParser) -> None:
    group = parser.add_argument_group("what the base model is to keep")
    option(
        group,
        "--preserve-base",
        "preserve.base",
        "hold on to what the base model draws for other captions: light costs little of what is learned, strong"
        " leaves about half as much change, and learns a style less closely; needs no pictures, and up to a"
        " third more time per step"
        f" (default: {TrainConfig().preserve.base})",
        choices=PRESERVES,
    )
    option(
        group,
        "--preserve-prompts",
        "preserve.prompts",
        "captions of what is to stay, without the trigger word (default: a broad list of everyday things)",
        nargs="+",
        metavar="TEXT",
    )


def _add_optimizer(parser: OneLineParser) -> None:
    optimizer = TrainConfig().optimizer
    group = parser.add_argument_group("optimizer")
    option(
        group, "--lr", "optimizer.learning_rate", f"learning rate (default: {optimizer.learning_rate:g})", type=float
    )
    option(
        group,
        "--optimizer",
        "optimizer.name",
        f"default: {optimizer.name}; an extra package is needed for adamw8bit (bitsandbytes), prodigy (prodigyopt;"
        " --lr 1 is usual), schedulefree (schedulefree) and lion (lion-pytorch; a tenth of adamw's --lr is usual)",
        choices=OPTIMIZERS,
    )
    for factor, name in (("up", "up"), ("sigma", "Σ"), ("down", "down")):
        option(
            group,
            f"--{factor}-rate",
            f"optimizer.{factor}_rate",
            f"learning rate of {name}, as a multiple of --lr; 0 holds it as it is (default: 1)",
            type=float,
        )
    option(
        group,
        "--text-encoder-rate",
        "optimizer.text_encoder_rate",
        "also train the text encoders' layers of the kinds of --layers, at this multiple of the rates above; 0.5 is"
        " usual (default: 0, the denoiser alone)",
        type=float,
    )
    option(
        group,
        "--weight-decay",
        "optimizer.weight_decay",
        f"of up and down, never of Σ (default: {optimizer.weight_decay:g})",
        type=float,
    )
    option(group, "--beta1", "optimizer.beta1", f"decay of the mean gradient (default: {optimizer.beta1})", type=float)
    option(
        group,
        "--beta2",
        "optimizer.beta2",
        "decay of the mean square of the gradient (default: the optimizer's own, 0.999, or 0.99 for lion)",
        type=float,
    )
    option(
        group,
        "--schedule",
        "optimizer.schedule",
        f"of the learning rate after its warm-up (default: {optimizer.schedule})",
        choices=SCHEDULES,
    )
    option(group, "--warmup-steps", "optimizer.warmup_steps", "steps from 0 to the full rate (default: 0)", type=whole)
    option(
        group,
        "--clip-norm",
        "optimizer.clip_norm",
        f"largest gradient norm, 0 for none (default: {optimizer.clip_norm:g})",
        type=float,
    )
    option(
        group,
        "--accumulation",
        "optimizer.accumulation",
        f"batches per optimizer step (default: {optimizer.accumulation})",
        type=whole,
    )
    option(
        group,
        "--ema",
        "ema",
        "decay of the mean over the steps that is saved in place of the last one; 0.99 is usual (default: 0, off)",
        type=float,
    )


def _add_loss(parser: OneLineParser) -> None:
    loss = TrainConfig().loss
    group = parser.add_argument_group("loss")
    option(
        group,
        "--timesteps",
        "loss.timesteps",
        f"how the amounts of noise are drawn (default: {loss.timesteps}, uniform for SD 1.5 and SDXL); logit-normal"
        " favours the middle, shifted draws more noise",
        choices=DRAWS,
    )
    option(
        group,
        "--logit-mean",
        "loss.logit_mean",
        f"with logit-normal: above 0 draws more noise (default: {loss.logit_mean:g})",
        type=float,
    )
    option(
        group,
        "--logit-std",
        "loss.logit_std",
        f"with logit-normal: its spread (default: {loss.logit_std:g})",
        type=float,
    )
    option(
        group,
        "--shift",
        "loss.shift",
        f"with shifted: above 1 draws more noise (default: {loss.shift:g})",
        type=float,
    )
    option(
        group,
        "--min-snr-gamma",
        "loss.min_snr_gamma",
        "lower the weight of the times of little noise (min-SNR weighting); 5 is usual (default: 0, off)",
        type=float,
    )
    option(
        group,
        "--noise-offset",
        "loss.noise_offset",
        "noise that is the same all over a channel, for very dark and bright pictures; 0.05 is usual (default: 0)",
        type=float,
    )
    option(
        group,
        "--orthogonality",
        "loss.orthogonality",
        "weight of a penalty that keeps the directions of up and down apart (default: 0, off)",
        type=float,
    )


def check_learning(given: Given, config: TrainConfig) -> None:
    """Raise InputError for a flag that would do nothing."""
    refuse_idle(given, _REFINES, config)


def _draws(run: TrainConfig, kind: str) -> bool:
    return run.loss.timesteps == kind
