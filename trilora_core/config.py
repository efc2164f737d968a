"""Every option of how a run learns, as frozen dataclasses that are checked once."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from .checks import flag, number, one_of, patterns, whole
from .errors import InputError

__all__ = [
    "DRAWS",
    "INITS",
    "LAYERS",
    "METHODS",
    "OPTIMIZERS",
    "PRECISIONS",
    "PRESERVES",
    "SCHEDULES",
    "AdapterConfig",
    "CalibrationConfig",
    "LayerConfig",
    "LossConfig",
    "MonitorConfig",
    "OptimizerConfig",
    "PreserveConfig",
    "TrainConfig",
    "parse_rank",
]

INITS = ("svd-mean", "svd", "svd-max", "svd-fro", "ones", "contrast")
METHODS = ("trilora", "lora")
OPTIMIZERS = ("adamw", "adamw8bit", "adafactor", "prodigy", "schedulefree", "lion")
SCHEDULES = ("constant", "cosine", "linear")
PRECISIONS = ("auto", "fp32", "bf16", "fp16")
LAYERS = ("attention", "self-attention", "attention+ff", "attention+ff+conv")
DRAWS = ("auto", "uniform", "logit-normal", "shifted")
PRESERVES = ("off", "light", "strong")

_SMALLEST_SIDE = 16  # pixels of a preview
_LATENT_PIXELS = 8  # of one latent, in each direction
_DIGITS = 9  # of a rank in letters: Python refuses to read thousands of them


@dataclass(frozen=True)
class LayerConfig:
    """Which layers of the model are adapted. Patterns are shell-style (`*`) over the layers' file stems."""

    which: str = "attention"
    include: tuple[str, ...] = ()  # only layers that match one of these; none given: all of `which`
    exclude: tuple[str, ...] = ()  # and none that matches one of these

    def __post_init__(self) -> None:
        one_of("layers.which", self.which, LAYERS)
        patterns("layers.include", self.include)
        patterns("layers.exclude", self.exclude)


@dataclass(frozen=True)
class AdapterConfig:
    """Shape and start of the adapter: ΔW = alpha/r · up · diag(Σ) · down.

    `init` names the start of Σ. `svd` (raw singular values, as in the paper) multiplies the effective learning rate
    of `up` by Σ, because Adam cancels the scale of a gradient but not that of the forward pass; `svd-mean` divides
    them by their mean, which keeps the effective rate of LoRA. `contrast` starts Σ as `svd-mean` does and `down` with
    directions that the data set uses and the rest of what the model draws does not, from a calibration.
    """

    rank: int | str = 16  # a number, or "energy:0.9": per layer the smallest rank that holds this share of W0's energy
    rank_cap: int = 128  # upper limit of an energy rank
    alpha: float | None = None  # None: alpha = rank, so that the scale is 1
    init: str = "svd-mean"
    method: str = "trilora"  # "lora" holds Σ at 1: the plain method, for comparison
    companion_rank: int = 0  # rank of the paper's second, smaller standard adapter (section 1); 0 = none
    rank_dropout: float = 0.0  # share of the rank's directions that each step leaves out, drawn anew
    layers: LayerConfig = field(default_factory=LayerConfig)

    def __post_init__(self) -> None:
        parse_rank(self.rank)
        whole("rank_cap", self.rank_cap, 1)
        if self.alpha is not None:
            number("alpha", self.alpha, above=0.0)
        one_of("init", self.init, INITS)
        one_of("method", self.method, METHODS)
        whole("companion_rank", self.companion_rank, 0)
        number("rank_dropout", self.rank_dropout, least=0.0, below=1.0)


@dataclass(frozen=True)
class OptimizerConfig:
    """How the parameters move: the method, its schedule and its limits. Σ never decays."""

    name: str = "adamw"
    learning_rate: float = 1e-4
    weight_decay: float = 0.01  # on up and down only
    beta1: float = 0.9
    beta2: float | None = None  # None: the method's own, 0.999, or 0.99 for lion
    schedule: str = "constant"
    warmup_steps: int = 0  # optimizer steps from 0 to the full rate
    clip_norm: float = 1.0  # largest global gradient norm; 0 = no clipping
    accumulation: int = 1  # batches per optimizer step
    up_rate: float = 1.0  # of the learning rate, for each of the three factors; 0 holds one as it is
    sigma_rate: float = 1.0
    down_rate: float = 1.0
    text_encoder_rate: float = 0.0  # of these, for the text encoders' layers (SD 1.5, SDXL); 0: they are not trained

    def __post_init__(self) -> None:
        one_of("optimizer", self.name, OPTIMIZERS)
        number("learning_rate", self.learning_rate, above=0.0)
        number("weight_decay", self.weight_decay, least=0.0)
        number("beta1", self.beta1, least=0.0, below=1.0)
        if self.beta2 is not None:
            number("beta2", self.beta2, least=0.0, below=1.0)
        one_of("schedule", self.schedule, SCHEDULES)
        whole("warmup_steps", self.warmup_steps, 0)
        number("clip_norm", self.clip_norm, least=0.0)
        whole("accumulation", self.accumulation, 1)
        for name in ("up_rate", "sigma_rate", "down_rate", "text_encoder_rate"):
            number(name, getattr(self, name), least=0.0)


@dataclass(frozen=True)
class LossConfig:
    """What is minimised, and at which times."""

    # how u in [0, 1] is drawn: uniform, logit-normal (Esser et al. 2024), shifted as in SD3 and Flux;
    # auto: logit-normal for flow models, whose own tables of times hold their shift, uniform for the others
    timesteps: str = "auto"
    logit_mean: float = 0.0  # of logit-normal and its spread
    logit_std: float = 1.0
    shift: float = 3.0  # of shifted: above 1 draws more noise
    # weight min(SNR, gamma)/SNR of the loss in x0 terms (Hang et al. 2023); 0: off, 5 is usual
    min_snr_gamma: float = 0.0
    # noise that is the same for all of a channel, for very dark and bright pictures; 0: off, 0.05 is usual
    noise_offset: float = 0.0
    orthogonality: float = 0.0  # weight of ‖UᵀU - I‖² + ‖VᵀV - I‖² of the normalised factors, mean over layers

    def __post_init__(self) -> None:
        one_of("loss.timesteps", self.timesteps, DRAWS)
        number("loss.logit_mean", self.logit_mean)
        number("loss.logit_std", self.logit_std, above=0.0)
        number("loss.shift", self.shift, above=0.0)
        number("loss.min_snr_gamma", self.min_snr_gamma, least=0.0)
        number("loss.noise_offset", self.noise_offset, least=0.0)
        number("loss.orthogonality", self.orthogonality, least=0.0)


@dataclass(frozen=True)
class MonitorConfig:
    """What is watched while a run goes on, and which files it leaves on the way. None of it changes what is learned."""

    validation_share: float = 0.0  # of the pictures, held out of training
    validate_every: int = 50  # optimizer steps between two measures of validation loss and drift
    patience: int = 0  # measures in a row without a better validation loss that end the run; 0: never
    preview_every: int = 0  # optimizer steps between two rounds of previews; 0: on request alone
    preview_prompts: tuple[str, ...] = ()
    preview_seed: int = 0  # of the first prompt; the next ones count up
    keep_adapters: int = 0  # adapters by step beside the final one, the latest ones, one at each save_every; 0: none
    keep_best: bool = False  # also the adapter of the best validation loss
    keep_state: bool = False  # do not delete the resumable state of a finished run
    spectrum_every: int = 0  # optimizer steps between two looks at every layer's singular values; 0: none
    preview_steps: int = 20  # of the sampler
    preview_cfg: float = 0.0  # guidance; 0: what is usual for the model
    preview_resolution: int = 0  # pixels of both sides; 0: the data set's

    def __post_init__(self) -> None:
        number("monitor.validation_share", self.validation_share, least=0.0, most=0.9)
        whole("monitor.validate_every", self.validate_every, 1)
        whole("monitor.patience", self.patience, 0)
        whole("monitor.preview_every", self.preview_every, 0)
        patterns("monitor.preview_prompts", self.preview_prompts)
        whole("monitor.preview_seed", self.preview_seed, 0)
        whole("monitor.keep_adapters", self.keep_adapters, 0)
        flag("monitor.keep_best", self.keep_best)
        flag("monitor.keep_state", self.keep_state)
        whole("monitor.spectrum_every", self.spectrum_every, 0)
        whole("monitor.preview_steps", self.preview_steps, 1)
        number("monitor.preview_cfg", self.preview_cfg, least=0.0)
        _check_side("monitor.preview_resolution", self.preview_resolution)
        if (self.patience or self.keep_best) and not self.validation_share:
            raise InputError(
                "monitor.patience and monitor.keep_best need monitor.validation_share above 0, 0.1 is usual"
            )
        if self.preview_every and not self.preview_prompts:
            raise InputError("monitor.preview_every is set, but monitor.preview_prompts is empty; say what to draw")


@dataclass(frozen=True)
class PreserveConfig:
    """How much of what the base model does on other captions is kept, without pictures of it."""

    base: str = "off"
    prompts: tuple[str, ...] = ()  # what is to stay; none given: a broad list of everyday things

    def __post_init__(self) -> None:
        one_of("preserve.base", self.base, PRESERVES)
        patterns("preserve.prompts", self.prompts)


@dataclass(frozen=True)
class CalibrationConfig:
    """Where the calibration comes from that the init "contrast" starts with."""

    make: bool = False  # make it, or take the one beside the adapter where that is the very one
    file: str = ""  # or take this one
    prompts: tuple[str, ...] = ()  # what the model should go on to draw as before; none: a broad built-in list

    def __post_init__(self) -> None:
        flag("calibration.make", self.make)
        patterns("calibration.prompts", self.prompts)
        if self.make and self.file:
            raise InputError("calibration.make and calibration.file were both given; choose one")
        if self.prompts and not self.make:
            raise InputError("calibration.prompts does nothing without calibration.make; set it to true")


@dataclass(frozen=True)
class TrainConfig:
    """A whole run except its model and data."""

    steps: int = 500  # optimizer steps
    epochs: int = 0  # passes over the data in place of steps; 0: as many as the steps make
    batch_size: int = 1
    seed: int = 0
    precision: str = "auto"  # of the forward pass; auto: as the model computes by itself
    gradient_checkpointing: bool = False  # recompute each block in the backward pass: less memory, more time
    save_every: int = 0  # optimizer steps between two saves of the resumable state; 0 = only at the end or on a stop
    prior_batch_size: int = 1  # prior pictures beside each batch, when there are any
    prior_weight: float = 1.0  # of their mean loss beside the mean loss of the batch
    ema: float = 0.0  # decay of the mean over the steps that is saved in place of the last ones; 0: off, 0.99 is usual
    adapter: AdapterConfig = field(default_factory=AdapterConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    monitor: MonitorConfig = field(default_factory=MonitorConfig)
    preserve: PreserveConfig = field(default_factory=PreserveConfig)

    def __post_init__(self) -> None:
        whole("steps", self.steps, 1)
        whole("epochs", self.epochs, 0)
        whole("batch_size", self.batch_size, 1)
        whole("seed", self.seed, 0)
        one_of("precision", self.precision, PRECISIONS)
        flag("gradient_checkpointing", self.gradient_checkpointing)
        whole("save_every", self.save_every, 0)
        whole("prior_batch_size", self.prior_batch_size, 1)
        number("prior_weight", self.prior_weight, least=0.0)
        number("ema", self.ema, least=0.0, below=1.0)


def _check_side(name: str, value: int) -> None:
    whole(name, value, 0)
    if value and (value < _SMALLEST_SIDE or value % _LATENT_PIXELS):
        raise InputError(
            f"{name} is {value}; wanted a multiple of {_LATENT_PIXELS} pixels from {_SMALLEST_SIDE} up, or 0 for the"
            " resolution of the data set"
        )


def parse_rank(rank: int | str) -> int | float:
    """Read a rank: a whole number stays one, "energy:0.9" becomes the float 0.9; else InputError."""
    if isinstance(rank, str) and rank.startswith("energy:"):
        try:
            share = float(rank.removeprefix("energy:"))
        except ValueError:
            share = math.nan
        if not 0.0 < share <= 1.0:
            raise InputError(f'rank is "{rank}"; wanted "energy:" and a share above 0 and up to 1, such as energy:0.9')
        return share
    if isinstance(rank, str) and rank.isascii() and rank.isdigit() and len(rank) <= _DIGITS:
        rank = int(rank)
    if not isinstance(rank, int) or isinstance(rank, bool) or rank < 1:
        raise InputError(f"rank is {rank!r}; wanted a whole number from 1 up (4 to 64 is usual), or energy:0.9")
    return rank
