"""LoRA files: one Adapter record in canonical form in, one out; safetensors only, written whole or not at all."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from . import spectral
from .atomic import write_atomic
from .errors import InputError
from .factors import canonical_layers, singular_values, stored_factors
from .jsontext import read_json
from .keys import canonical_stem, foreign_layer, guess_architecture, is_dotted, parse_key
from .spectral import SVD

__all__ = [
    "FORMAT_VERSION",
    "Adapter",
    "Layer",
    "read_adapter",
    "read_metadata",
    "stored_dtype",
    "tensor_hash",
    "write_adapter",
]

FORMAT_VERSION = "1"
_DTYPES = (torch.float16, torch.bfloat16, torch.float32)
_HEADER_LIMIT = 100_000_000  # bytes; the safetensors format's own limit
_PEFT_SETTINGS = "lora_adapter_metadata"  # where diffusers keeps PEFT's alpha; it would be applied a second time
_STALE = (_PEFT_SETTINGS, "sshs_legacy_hash")
_SHOWN = 3
_READABLE = (*_DTYPES, torch.float64, torch.float8_e4m3fn, torch.float8_e5m2)
_WHOLE = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)  # some tools write alpha as an integer
_LARGEST = 1e30  # of an alpha
_LONGEST_NAME = 1000  # letters of a tensor's name; real ones have at most some 150
_MOST_SIDES = 5  # of a tensor: a three-dimensional convolution's


@dataclass(frozen=True)
class Layer:
    """One adapted layer, ΔW = svd.u · diag(svd.s) · svd.vh.

    `kernel` is () for Linear and (kh, kw) for Conv, where vh is (k, in · kh · kw).
    """

    svd: SVD
    kernel: tuple[int, ...] = ()


@dataclass(frozen=True)
class Adapter:
    """A trained adapter: layers by canonical stem, and the file's metadata."""

    layers: dict[str, Layer]
    metadata: dict[str, str]


def read_adapter(path: Path | str) -> Adapter:
    """Read any plain LoRA file (ours, kohya, PEFT/diffusers, native) into canonical form, its scale folded in.

    Raises InputError, naming the file, when it is missing, damaged, no safetensors file, or holds anything but a LoRA.
    """
    path = Path(path)
    tensors, metadata = _load(path)
    parts = _group(path, tensors)
    widths = {stem: part["down"].shape[1] for stem, part in parts.items() if part["down"].ndim > 1}
    architecture = guess_architecture(parts, metadata, widths)
    stems = _canonical_stems(path, parts, architecture)
    settings = _peft_settings(path, metadata)
    factors, kernels = {}, {}
    for raw, part in parts.items():
        factors[stems[raw]], kernels[stems[raw]] = _matrices(path, raw, part, _peft_scale(path, settings, raw, part))
    try:
        svds = canonical_layers(factors)
    except ValueError as error:
        raise InputError(f"{path}: {error}; the file is damaged or its training diverged: use another one") from error
    layers = {stem: Layer(svd, kernels[stem]) for stem, svd in svds.items()}
    return Adapter(layers, {key: value for key, value in metadata.items() if key not in _STALE})


def read_metadata(path: Path | str) -> dict[str, str]:
    """Read only the metadata of a safetensors file; raises InputError as read_adapter does."""
    path = Path(path)
    _check_header(path)
    try:
        with safe_open(path, framework="pt") as file:
            return dict(file.metadata() or {})
    except (SafetensorError, OSError) as error:
        raise _damaged(path, error) from error


def stored_dtype(path: Path | str) -> torch.dtype:
    """The widest number format among a LoRA file's tensors (float16, bfloat16 or float32); alphas do not count."""
    tensors, _ = _load(Path(path))
    found = {tensor.dtype for key, tensor in tensors.items() if not key.endswith(".alpha")}
    return found.pop() if len(found) == 1 and found <= set(_DTYPES) else torch.float32


def tensor_hash(path: Path | str) -> str:
    """SHA-256 of a file's bytes after its header: `sshs_model_hash`, and with 0x before it `modelspec.hash_sha256`."""
    path = Path(path)
    _check_header(path)
    digest = hashlib.sha256()
    with path.open("rb") as file:
        file.seek(8 + int.from_bytes(file.read(8), "little"))
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def write_adapter(path: Path | str, adapter: Adapter, *, dtype: torch.dtype = torch.float16) -> None:
    """Write an adapter as a plain LoRA file of balanced factors, atomically; hashes and rank summary are made fresh.

    Stems that begin with `lora_` become lora_down, lora_up and alpha (= rank); dotted ones lora_A and lora_B.
    Raises InputError when the folder cannot be written, the disk is full or a value does not fit `dtype`.
    """
    path = Path(path)
    if dtype not in _DTYPES:
        raise InputError(f"dtype is {dtype}; wanted float16, bfloat16 or float32")
    if not adapter.layers:
        raise InputError(f"cannot write {path}: the adapter has no layers; train or load one first")
    tensors: dict[str, Tensor] = {}
    spectra: list[Tensor] = []
    for stem, layer in adapter.layers.items():
        up, down = _factors(path, stem, layer, dtype)
        tensors |= _named(stem, up, down, layer.kernel)
        spectra.append(singular_values(up, down))
    blob = memoryview(save(tensors))
    start = 8 + int.from_bytes(blob[:8], "little")
    header, data = json.loads(bytes(blob[8:start])), blob[start:]
    kernels = [layer.kernel for layer in adapter.layers.values()]
    header = {"__metadata__": _stamped(adapter.metadata, spectra, kernels, data)} | header
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    write_atomic(path, lambda temporary: _write_parts(temporary, (len(text).to_bytes(8, "little"), text, data)))


# --- reading ------------------------------------------------------------------


def _load(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Every tensor, in the dtype of the file, and the metadata."""
    _check_header(path)
    try:
        with safe_open(path, framework="pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise _damaged(path, error) from error


def _check_header(path: Path) -> None:
    """Tell by the first bytes what a file is not; nothing in it is run or unpacked."""
    try:
        if path.is_dir():
            raise InputError(f"{path} is a folder; give a .safetensors file in it")
        size = path.stat().st_size
        with path.open("rb") as file:
            first = file.read(16)
    except FileNotFoundError as error:
        raise InputError(f"{path} does not exist; check the name and the folder") from error
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}; check the file and its rights") from error
    length = int.from_bytes(first[:8], "little")
    if size >= 16 and length <= _HEADER_LIMIT and first[8:9] == b"{":  # first: a length may begin with a pickle's byte
        if 8 + length > size:
            raise InputError(f"{path} is cut off: its header alone has {length} bytes; copy or download it again")
        return
    if first[:2] == b"PK" or first[:1] == b"\x80":
        raise InputError(
            f"{path} is a pickle (.pt, .ckpt or .bin), which can run code when opened, so it was not opened;"
            " convert it to .safetensors where you trust it, or get the .safetensors version"
        )
    if size < 16:
        raise InputError(f"{path} has only {size} bytes: the file is empty or cut off; copy or download it again")
    if all(byte in b"\t\r\n" or 32 <= byte < 127 for byte in first):
        raise InputError(f"{path} is a text file, not safetensors (perhaps a saved web page); download it again")
    raise InputError(f"{path} is not a safetensors file: it does not begin with its header; give a LoRA file")


def _damaged(path: Path, error: Exception) -> InputError:
    return InputError(f"{path} is damaged or cut off ({error}); copy or download it again")


def _group(path: Path, tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """Tensors by stem as spelled in the file and by part, after everything that is no plain LoRA was refused."""
    foreign: dict[str, list[str]] = {}
    parts: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        if len(key) > _LONGEST_NAME:
            raise InputError(f"{path}: a tensor has a name of {len(key)} letters; the file is damaged: get it again")
        name = parse_key(key)
        if name is None:
            kind, layer = foreign_layer(key)
            foreign.setdefault(kind, []).append(layer)
        elif tensor.dtype not in (_READABLE if name.part != "alpha" else (*_READABLE, *_WHOLE)):
            foreign.setdefault(f"numbers of {str(tensor.dtype).removeprefix('torch.')}", []).append(name.stem)
        elif name.part in parts.setdefault(name.stem, {}):
            raise InputError(f"{path}: layer {name.stem} is there twice; give a file with one adapter")
        else:
            parts[name.stem][name.part] = tensor
    if foreign:
        found = "; ".join(f"{kind} in {_some(dict.fromkeys(layers))}" for kind, layers in sorted(foreign.items()))
        raise InputError(f"{path} is not a plain LoRA: it holds {found}; only LoRA (up, down, alpha) can be used here")
    if not parts:
        raise InputError(f"{path} holds no tensors; give a LoRA file")
    for part, wanted in (("up", "lora_up or lora_B"), ("down", "lora_down or lora_A")):
        without = [stem for stem, found in parts.items() if part not in found]
        if without:
            raise InputError(f"{path}: no {wanted} for {_some(without)}; the file is incomplete: get it again")
    return parts


def _canonical_stems(path: Path, parts: Iterable[str], architecture: str) -> dict[str, str]:
    """Stem as spelled -> canonical stem; two spellings of one layer are refused."""
    stems = {raw: canonical_stem(raw, architecture) for raw in parts}
    spelled: dict[str, str] = {}
    for raw, stem in stems.items():
        if stem in spelled:
            raise InputError(f"{path}: {spelled[stem]} and {raw} are the same layer; give a file with one adapter")
        spelled[stem] = raw
    return stems


def _matrices(
    path: Path, stem: str, part: Mapping[str, Tensor], scale: float
) -> tuple[tuple[Tensor, Tensor], tuple[int, ...]]:
    """((up (out, r), down (r, in · kernel)), kernel) of one layer, alpha folded into up where it is not the rank."""
    up, down = part["up"], part["down"]
    kernel = tuple(down.shape[2:])
    fits = all(2 <= factor.ndim <= _MOST_SIDES and factor.numel() for factor in (up, down))
    if not fits or up.shape[1] != down.shape[0] or math.prod(up.shape[2:]) != 1:
        raise InputError(
            f"{path}: {stem} has up {tuple(up.shape)} and down {tuple(down.shape)}; wanted (out, r) and (r, in),"
            " for convolutions (out, r, 1, 1) and (r, in, kh, kw)"
        )
    if "alpha" in part:
        alpha = part["alpha"].double()
        if alpha.numel() != 1 or not abs(float(alpha)) < _LARGEST:  # NaN is not
            found = float(alpha) if alpha.numel() == 1 else alpha.flatten()[:_SHOWN].tolist()
            raise InputError(f"{path}: alpha of {stem} is {found}; wanted one finite number")
        scale *= float(alpha) / down.shape[0]
    flat_up, flat_down = up.flatten(1), down.flatten(1)
    return (flat_up if scale == 1.0 else flat_up.float() * scale, flat_down), kernel


def _peft_settings(path: Path, metadata: Mapping[str, str]) -> dict[str, Any]:
    """PEFT's own settings, which diffusers puts into one metadata entry ("unet.lora_alpha": …)."""
    try:
        settings = read_json(metadata.get(_PEFT_SETTINGS, "{}"))
    except ValueError as error:
        raise InputError(f"{path}: its {_PEFT_SETTINGS} is no JSON ({error}); get the file again") from error
    return settings if isinstance(settings, dict) else {}


def _peft_scale(path: Path, settings: Mapping[str, Any], stem: str, part: Mapping[str, Tensor]) -> float:
    """alpha / r (rsLoRA: alpha / sqrt(r)) of a layer whose alpha lies in the metadata; 1 where nothing is said."""
    component, _, module = stem.partition(".")
    alpha = settings.get(f"{component}.lora_alpha")
    own = settings.get(f"{component}.alpha_pattern")
    patterns = own.items() if isinstance(own, dict) else ()
    alpha = next((value for name, value in patterns if f".{module}".endswith(f".{name}")), alpha)
    if not isinstance(alpha, (int, float)) or "alpha" in part:
        return 1.0
    if not abs(alpha) < _LARGEST:
        raise InputError(f"{path}: lora_alpha of {stem} is {str(alpha)[:40]}; wanted a finite number")
    rank = part["down"].shape[0]
    return float(alpha) / (rank**0.5 if settings.get(f"{component}.use_rslora") else max(rank, 1))


def _some(names: Iterable[str]) -> str:
    every = list(names)
    more = f" and {len(every) - _SHOWN} more" if len(every) > _SHOWN else ""
    return ", ".join(every[:_SHOWN]) + more


# --- writing ------------------------------------------------------------------


def _factors(path: Path, stem: str, layer: Layer, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Balanced factors of one layer in `dtype`, every value finite."""
    svd = SVD(*(part.detach().cpu() for part in layer.svd))
    if not all(part.isfinite().all() for part in svd):
        raise InputError(f"cannot write {path}: {stem} holds NaN or infinite values; its training diverged")
    up, down = stored_factors(svd, dtype)
    if not (up.isfinite().all() and down.isfinite().all()):
        raise InputError(f"cannot write {path}: {stem} is too large for {dtype}; save it as float32 or bfloat16")
    return up, down


def _named(stem: str, up: Tensor, down: Tensor, kernel: tuple[int, ...]) -> dict[str, Tensor]:
    """The tensors of one layer as they lie in the file."""
    if kernel:
        up, down = up.reshape(*up.shape, *(1 for _ in kernel)), down.reshape(down.shape[0], -1, *kernel)
    if is_dotted(stem):
        return {f"{stem}.lora_A.weight": down, f"{stem}.lora_B.weight": up}
    alpha = torch.tensor(float(down.shape[0]))  # float32: bfloat16 does not hold every rank above 256
    return {f"{stem}.lora_down.weight": down, f"{stem}.lora_up.weight": up, f"{stem}.alpha": alpha}


def _stamped(
    metadata: Mapping[str, str], spectra: Sequence[Tensor], kernels: Sequence[tuple[int, ...]], data: memoryview
) -> dict[str, str]:
    """The metadata with what depends on the tensors made fresh, sorted, every string valid Unicode.

    Both hashes are of the tensor bytes after the header, as kohya and the model spec define them.
    """
    digest = hashlib.sha256(data).hexdigest()
    rank = max(s.shape[-1] for s in spectra)
    # kohya's conv_dim is that of kernels above 1 x 1
    convs = [s.shape[-1] for s, kernel in zip(spectra, kernels, strict=True) if max(kernel, default=1) > 1]
    fresh = {
        **_network_args(metadata.get("ss_network_args", ""), max(convs, default=0)),
        "ss_network_dim": str(rank),
        "ss_network_alpha": str(float(rank)),
        "sshs_model_hash": digest,
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.hash_sha256": f"0x{digest}",
        "trilora.format_version": FORMAT_VERSION,
        "trilora.spectrum": json.dumps(_summary(spectra), sort_keys=True),
    }
    kept = {"ss_network_module": "networks.lora"} | {k: v for k, v in metadata.items() if k not in _STALE}
    # Names of files can hold lone surrogates, which no JSON reader accepts.
    return {k: v.encode("utf-8", "replace").decode() for k, v in sorted((kept | fresh).items())}


def _network_args(text: str, conv_rank: int) -> dict[str, str]:
    """kohya's ss_network_args with the rank of the convolutions as it is now, 0 for none; {} where it is right."""
    try:
        given = read_json(text or "{}")
    except ValueError:
        return {}  # another tool's own wording
    given = given if isinstance(given, dict) else {}
    ranks = {"conv_dim": str(conv_rank), "conv_alpha": str(float(conv_rank))} if conv_rank else {}
    fitting = {key: value for key, value in given.items() if key not in ("conv_dim", "conv_alpha")} | ranks
    return {} if fitting == given else {"ss_network_args": json.dumps(fitting)}


def _summary(spectra: Sequence[Tensor]) -> dict[str, float]:
    """What a file manager may want to show: layers, ranks, energy, effective rank, largest singular value."""
    ranks = [s.shape[-1] for s in spectra]
    effective = torch.stack([spectral.effective_rank(s) for s in spectra])
    return {
        "layers": len(spectra),
        "rank_min": min(ranks),
        "rank_max": max(ranks),
        "energy": _short(sum(float(spectral.energy(s)) for s in spectra)),
        "effective_rank_mean": _short(float(effective.mean())),
        "largest": _short(max(float(s.max()) for s in spectra)),
    }


def _short(value: float) -> float:
    return float(f"{value:.6g}")


def _write_parts(path: Path, parts: Iterable[bytes | memoryview]) -> None:
    with path.open("wb") as file:
        for part in parts:
            file.write(part)
