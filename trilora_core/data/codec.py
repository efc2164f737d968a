"""Plain structures of tensors to bytes and back: safetensors for the numbers, JSON for the structure, no pickle."""

from __future__ import annotations

import json
import struct
import zlib
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

__all__ = ["decode", "encode"]

DEEPEST = 100  # levels of nesting; deeper is a cycle, or nothing that an encoder gives
DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (
        *(torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2),
        *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool),
    )
}
_HEADER = struct.Struct("<II")  # CRC-32 of all that follows it, length of the JSON
_SCALARS = (type(None), bool, int, float, str)


def encode(value: Any) -> bytes:
    """Turn None, bool, int, float, str, list, tuple, dict with str keys and tensors, nested, into bytes.

    A float32 tensor is narrowed to bfloat16 or float16 when every value survives that bit for bit; each dtype comes
    back as it was. TypeError for anything else, subclasses too, because it would come back as something else.
    """
    tensors: dict[str, Tensor] = {}
    structure = json.dumps(_describe(value, tensors, 0), separators=(",", ":")).encode()
    body = structure + (save(tensors) if tensors else b"")
    return _HEADER.pack(zlib.crc32(body), len(structure)) + body


def decode(blob: bytes) -> Any:
    """Give back what `encode` was given: tensors on the CPU, autograd may use them even if this is inference mode.

    ValueError when the bytes are not what `encode` wrote.
    """
    if len(blob) < _HEADER.size:
        raise ValueError(f"{len(blob)} bytes; wanted at least {_HEADER.size}")
    checksum, length = _HEADER.unpack_from(blob)
    body = memoryview(blob)[_HEADER.size :]
    if zlib.crc32(body) != checksum:
        raise ValueError("the checksum of a cache entry does not fit its bytes")
    try:
        structure = json.loads(bytes(body[:length]))
        with torch.inference_mode(False):
            tensors = load(bytes(body[length:])) if len(body) > length else {}
            return _build(structure, tensors)
    except (KeyError, IndexError, TypeError, RecursionError, SafetensorError) as error:
        raise ValueError(f"a cache entry has an unknown form: {error}") from error


def _describe(value: Any, tensors: dict[str, Tensor], depth: int) -> Any:
    """The JSON of a value: an object is a dict, an array has its kind in front; tensors go to `tensors`."""
    kind = type(value)
    if depth > DEEPEST:
        raise TypeError(f"a value is nested deeper than {DEEPEST} levels")
    if kind in _SCALARS:
        return value
    if kind is Tensor:
        return _describe_tensor(value, tensors)
    if kind is list or kind is tuple:
        return [kind.__name__, *(_describe(item, tensors, depth + 1) for item in value)]
    if kind is dict and all(type(key) is str for key in value):
        return {key: _describe(item, tensors, depth + 1) for key, item in value.items()}
    raise TypeError(f"{kind.__name__} is not a plain structure of tensors, numbers and texts")


def _describe_tensor(tensor: Tensor, tensors: dict[str, Tensor]) -> list[str]:
    dtype, name = str(tensor.dtype).removeprefix("torch."), str(len(tensors))
    if dtype not in DTYPES or tensor.layout != torch.strided or tensor.device.type == "meta":
        raise TypeError(f"a tensor of {tensor.dtype}, {tensor.layout} on {tensor.device} cannot be kept in a file")
    # A copy: safetensors refuses tensors that share memory or lie in it in another order.
    plain = tensor.detach().resolve_neg().to("cpu").clone(memory_format=torch.contiguous_format)
    tensors[name] = _narrow(plain)
    return ["tensor", name, dtype]


def _narrow(tensor: Tensor) -> Tensor:
    if tensor.dtype != torch.float32:
        return tensor
    bits = tensor.view(torch.int32)  # bits, not values: NaN equals itself, and 0.0 is not -0.0
    for dtype in (torch.bfloat16, torch.float16):
        small = tensor.to(dtype)
        if torch.equal(small.to(torch.float32).view(torch.int32), bits):
            return small
    return tensor


def _build(structure: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(structure, dict):
        return {key: _build(item, tensors) for key, item in structure.items()}
    if not isinstance(structure, list):
        return structure
    kind, *items = structure
    if kind == "tensor":
        name, dtype = items
        return tensors[name].to(DTYPES[dtype])
    if kind not in ("list", "tuple"):
        raise ValueError(f"a cache entry has an unknown kind: {kind}")
    values = [_build(item, tensors) for item in items]
    return tuple(values) if kind == "tuple" else values
