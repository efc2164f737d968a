"""The host's model as the training loop sees it: one batched forward through apply_model, in the model's own target."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import comfy.model_management
import torch
from comfy.ldm.modules.attention import attention_pytorch
from torch import Tensor, nn

from ...trilora_core.branch import Target
from ...trilora_core.config import LayerConfig
from ...trilora_core.errors import InputError
from ...trilora_core.layers import DEFAULT
from ...trilora_core.transfer import upload
from . import models

__all__ = ["HostDenoiser"]

NO_BACKWARD = ("sage_attention_enabled", "flash_attention_enabled", "comfy_kitchen_attention_enabled")


class HostDenoiser:
    """The Denoiser protocol over a host's model patcher; use it inside `training(patcher)`, which loads the model.

    Times are the host's sigmas, (B,) float32 on the model's device. Conditioning is one entry `[tensor, options]` of
    the host's CONDITIONING for each sample.
    """

    def __init__(self, patcher: Any) -> None:
        """Raises InputError for a kind of model that cannot be trained."""
        architecture = models.detect(patcher.model)
        self.patcher = patcher
        self.model = patcher.model
        self.architecture = architecture.name
        self.in_place_safe = not architecture.in_place  # for trilora_core.recompute.checkpointed
        self.base_name = models.base_name(patcher)
        self.base_fingerprint = models.fingerprint(patcher)

    @property
    def compute_dtype(self) -> torch.dtype:
        """What the model computes in when nothing is autocast."""
        return self.model.manual_cast_dtype or self.model.get_dtype()

    @property
    def prediction_type(self) -> str:
        """What the network predicts, by its name in file metadata: "epsilon", "v" or "flow"."""
        return models.prediction_type(self.patcher)

    @property
    def device(self) -> torch.device:
        """Where the model computes."""
        return self.patcher.load_device

    def targets(self, layers: LayerConfig = DEFAULT) -> dict[str, Target]:
        """The chosen layers by canonical stem; InputError when none is left."""
        return models.targets(self.patcher, layers)

    def blocks(self) -> list[nn.Module]:
        """What gradient checkpointing recomputes one by one."""
        return models.blocks(self.model)

    def times(self, u: Tensor) -> Tensor:
        """Draws u in [0, 1], (B,) -> sigmas of the model's own table, (B,): shift and zero-SNR included."""
        table = self.model.model_sampling.sigmas.to(self.device)
        index = (upload(u, self.device) * len(table)).long().clamp(max=len(table) - 1)
        return table[index].float()

    def snr(self, times: Tensor) -> Tensor:
        """(signal / noise)² of the model's noisy latents at sigmas (B,)."""
        column = times.reshape(-1, 1)
        one, zero = torch.ones_like(column), torch.zeros_like(column)
        scaling = self.model.model_sampling.noise_scaling
        return (scaling(times, zero, one) / scaling(times, one, zero)).square().flatten()

    def raw(self, latents: Tensor) -> Tensor:
        """Latents of the model's scale, (B, C, h, w) -> as the VAE gives them."""
        return self.model.process_latent_out(latents)

    def predict(self, latents: Tensor, noise: Tensor, times: Tensor, cond: Sequence[Any]) -> tuple[Tensor, Tensor]:
        """One forward of raw VAE latents (B, C, h, w) at sigmas (B,): (network output, its regression target)."""
        self._check(latents, cond)
        clean = self.model.process_latent_in(upload(latents, self.device, torch.float32))
        sigmas = upload(times, self.device)
        sampling = self.model.model_sampling
        noisy = sampling.noise_scaling(sigmas, noise.to(clean), clean)
        skip, gain = _affine(sampling, sigmas, clean.ndim)
        denoised = self._denoised(noisy, sigmas, cond)
        return (denoised - skip * noisy) / gain, (clean - skip * noisy) / gain

    def _denoised(self, noisy: Tensor, sigmas: Tensor, cond: Sequence[Any]) -> Tensor:
        """The clean latents that the model believes in; unlike lengths run apart, then go back in order."""
        encoded = [self._model_conds(entry, noisy[i : i + 1]) for i, entry in enumerate(cond)]
        groups = _groups(encoded)
        if len(groups) == 1:
            return self._apply(noisy, sigmas, encoded)
        parts = []
        for group in groups:
            rows = upload(torch.tensor(group), noisy.device)
            parts.append(self._apply(noisy[rows], sigmas[rows], [encoded[i] for i in group]))
        back = torch.tensor([i for group in groups for i in group]).argsort()
        return torch.cat(parts)[upload(back, noisy.device)]

    def _apply(self, noisy: Tensor, sigmas: Tensor, encoded: Sequence[dict[str, Any]]) -> Tensor:
        conds = {name: first.concat([other[name] for other in encoded[1:]]) for name, first in encoded[0].items()}
        options = dict(self.patcher.model_options.get("transformer_options", {}))  # the host's models write into it
        options |= {"cond_or_uncond": [0] * len(encoded), "sigmas": sigmas}
        if "optimized_attention_override" in options or _attention_has_no_backward():
            options["optimized_attention_override"] = _differentiable
        return self.model.apply_model(noisy, sigmas, transformer_options=options, **conds)

    def _model_conds(self, entry: Any, sample: Tensor) -> dict[str, Any]:
        """The host's own conditioning of one sample (1, C, h, w), as its sampler would encode it."""
        tensor, options = entry
        size = {"width": sample.shape[3] * 8, "height": sample.shape[2] * 8, "prompt_type": "positive"}
        found = self.model.extra_conds(**{**size, **options}, cross_attn=tensor, noise=sample, device=self.device)
        return {name: value.process_cond(batch_size=1, area=None) for name, value in found.items()}

    def _check(self, latents: Tensor, cond: Sequence[Any]) -> None:
        wanted = self.model.latent_format.latent_channels
        if latents.ndim != 4 or latents.shape[1] != wanted:
            raise InputError(
                f"latents of shape {tuple(latents.shape)} do not fit this model, which wants (pictures, {wanted}, h,"
                " w): make the data set with the VAE that belongs to the model"
            )
        if len(cond) != latents.shape[0]:
            raise InputError(f"{latents.shape[0]} latents came with {len(cond)} conditions; give one for each")


def _attention_has_no_backward() -> bool:
    """Whether the host was started with an attention that is made for sampling: it cuts gradients off, or fails."""
    return any(getattr(comfy.model_management, name, bool)() for name in NO_BACKWARD)


def _differentiable(_chosen: Any, *args: Any, **given: Any) -> Tensor:
    """Torch's attention in place of the one that the host, or a node before this one, has chosen."""
    return attention_pytorch(*args, **given)


def _affine(sampling: Any, sigmas: Tensor, ndim: int) -> tuple[Tensor, Tensor]:
    """(skip, gain) of `denoised = skip · noisy + gain · network output`, true of eps, v, EDM and flow models alike.

    Asked of the host's own formula, so that prediction and target are what the network was trained on
    (Karras et al. 2022, eq. 7).
    """
    column = sigmas.reshape(-1, *[1] * (ndim - 1))
    one, zero = torch.ones_like(column), torch.zeros_like(column)
    return sampling.calculate_denoised(sigmas, zero, one), sampling.calculate_denoised(sigmas, one, zero)


def _groups(encoded: Sequence[dict[str, Any]]) -> list[list[int]]:
    """Indices of samples whose conditions have the same names, sizes and constants, first come first.

    The host would repeat tokens to join unlike lengths: harmless in cross-attention, wrong in joint attention.
    """
    groups: list[list[int]] = []
    for index, conds in enumerate(encoded):
        group = next((group for group in groups if _alike(encoded[group[0]], conds)), None)
        if group is None:
            groups.append([index])
        else:
            group.append(index)
    return groups


def _alike(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return one.keys() == other.keys() and all(
        one[name].size() == other[name].size() and one[name].can_concat(other[name]) for name in one
    )
