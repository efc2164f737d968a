"""Hostile files from good ones: mutations that know safetensors and JSON, drawn from a seeded generator."""

from __future__ import annotations

import json
import random
import struct
from collections.abc import Callable
from typing import Any

# Numbers of bits of the number formats that safetensors knows, and some that it does not.
DTYPES = {
    "BOOL": 8,
    "U8": 8,
    "I8": 8,
    "F8_E5M2": 8,
    "F8_E4M3": 8,
    "F8_E8M0": 8,
    "F4": 4,
    "F6_E2M3": 6,
    "I16": 16,
    "U16": 16,
    "F16": 16,
    "BF16": 16,
    "I32": 32,
    "U32": 32,
    "F32": 32,
    "C64": 64,
    "F64": 64,
    "I64": 64,
    "U64": 64,
    "F128": 128,
    "": 8,
    "../F16": 16,
}
NAMES = (
    "../../../../tmp/evil",
    "/etc/passwd",
    "C:\\Windows\\evil",
    "..\\..\\evil",
    "a\0b",
    "a\nb\r\x1b[31mred\x1b[0m",
    "\u202eevil",
    "a\u2028b\u0085c",
    "\ud800",
    "con",
    "",
    " ",
    ".",
    "..",
    "%s%s%n",
    "{0.__class__}",
    "__metadata__",
    "__class__",
    "lora_unet_" + "transformer_blocks_" * 3000,
    "lora_unet_down_blocks_" + "9" * 5000 + "_attentions_0_proj_in",
    "x" * 100_000,
    "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q",
    "transformer.transformer_blocks.0.attn.to_q",
    "text_encoder." * 40,
    "base_model.model.",
    "unet.",
    "lora_unet_",
)
ENDINGS = (
    ".lora_up.weight",
    ".lora_down.weight",
    ".alpha",
    ".lora_A.weight",
    ".lora_B.default.weight",
    ".dora_scale",
    "",
)
# Written into the text as they are: JSON that Python's own writer would refuse to make.
RAW = {
    "<deep list>": "[" * 20_000 + "]" * 20_000,
    "<deep object>": '{"a":' * 20_000 + "1" + "}" * 20_000,
    "<digits>": "9" * 5000,
    "<huge float>": "1e999",
    "<nan>": "NaN",
    "<minus infinity>": "-Infinity",
    "<open>": "[" * 20_000,
}
VALUES: tuple[Any, ...] = (
    *RAW,
    None,
    True,
    False,
    0,
    -1,
    1,
    3,
    10**15,
    10**25,
    10**400,
    -(10**15),
    0.5,
    1e308,
    -1e308,
    5e-324,
    "",
    "abc",
    "NaN",
    "1e5",
    "9" * 5000,
    "x" * 50_000,
    [],
    {},
    [[]],
    [None],
    [1, 2, 3],
    ["a", "b"],
    {"a": 1},
    {"": {"": {}}},
    [0.1] * 200,
    {str(index): index for index in range(200)},
    *NAMES,
)


def hostile_bytes(data: bytes, draw: random.Random) -> bytes:
    """The file cut, stretched, or with some of its bytes changed; the first 8 are the length of the header."""
    kind = draw.randrange(8)
    place = draw.randrange(len(data) + 1)
    if kind == 0:
        return data[:place]
    if kind == 1:
        return data + draw.randbytes(draw.choice((1, 8, 4096)))
    if kind == 2:
        lengths = (0, 1, 2, 7, len(data), len(data) - 8, 100_000_000, 100_000_001, 2**31, 2**63, 2**64 - 1)
        return struct.pack("<Q", draw.choice(lengths)) + data[8:]
    if kind == 3:
        end = min(len(data), place + draw.choice((1, 4, 64)))
        return data[:place] + data[end:]
    if kind == 4:
        return data[:place] + draw.randbytes(draw.choice((1, 4, 64))) + data[place:]
    if kind == 5:
        start = draw.randrange(len(data) + 1)
        return data[:place] + data[start : start + 64] + data[place:]
    changed = bytearray(data)
    for _ in range(draw.choice((1, 1, 2, 8, 64))):
        where = draw.randrange(min(len(changed), 400) if draw.random() < 0.5 else len(changed))
        changed[where] = draw.choice(
            (0, 0x7F, 0x80, 0xFF, draw.randrange(256), changed[where] ^ 1 << draw.randrange(8))
        )
    return bytes(changed)


def hostile_value(value: Any, draw: random.Random) -> Any:
    """A JSON value with one of its parts replaced, renamed, doubled or taken out."""
    if not isinstance(value, (dict, list)) or not value or draw.random() < 0.08:
        return draw.choice(VALUES)
    if isinstance(value, list):
        changed, place = list(value), draw.randrange(len(value))
        kind = draw.randrange(4)
        if kind == 0:
            del changed[place]
        elif kind == 1:
            changed.insert(place, draw.choice(VALUES))
        else:
            changed[place] = hostile_value(changed[place], draw)
        return changed
    table, key = dict(value), draw.choice(list(value))
    kind = draw.randrange(6)
    if kind == 0:
        del table[key]
    elif kind == 1:
        table[draw.choice(NAMES)] = table.pop(key)
    elif kind == 2:
        table[draw.choice(NAMES)] = draw.choice(VALUES)
    else:
        table[key] = hostile_value(table[key], draw)
    return table


def written(value: Any) -> str:
    """JSON with the parts of RAW put in; lone surrogates stay as escapes."""
    text = json.dumps(value)
    for name, raw in RAW.items():
        text = text.replace(json.dumps(name), raw)
    return text


def hostile_json(text: str, draw: random.Random) -> str:
    """JSON text with one or more parts replaced, and sometimes broken as text."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):  # an earlier mutation broke it
        return broken_text(text, draw)
    for _ in range(draw.choice((1, 1, 1, 2, 4))):
        value = hostile_value(value, draw)
    return broken_text(written(value), draw) if draw.random() < 0.2 else written(value)


def broken_text(text: str, draw: random.Random) -> str:
    """Text with some of it cut out, doubled, or replaced."""
    first, last = sorted(draw.randrange(len(text) + 1) for _ in range(2))
    last = min(last, first + draw.choice((1, 2, 40)))
    with_what = draw.choice(("", text[first:last] * 2, draw.choice(NAMES), draw.choice("{}[]\",:=-+eE.\n\t0 9'#*")))
    return text[:first] + with_what + text[last:]


# --- safetensors ----------------------------------------------------------------------------------------------------

Header = dict[str, Any]


def split(data: bytes) -> tuple[Header, bytes]:
    """Header and tensor bytes of a good file."""
    length = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def joined(header: Header | str, body: bytes) -> bytes:
    text = (written(header) if isinstance(header, dict) else header).encode("utf-8", "surrogatepass")
    return struct.pack("<Q", len(text)) + text + body


def hostile_safetensors(data: bytes, draw: random.Random) -> bytes:
    """A mutant of a good file: of its bytes, its header, its metadata, or its tensors in a container that is sound."""
    kinds: tuple[Callable[[bytes, random.Random], bytes], ...] = (
        hostile_bytes,
        _other_header,
        _other_entry,
        _other_metadata,
        _other_tensors,
        _other_tensors,
        _other_numbers,
    )
    return draw.choice(kinds)(data, draw)


def _other_header(data: bytes, draw: random.Random) -> bytes:
    header, body = split(data)
    if draw.random() < 0.3:
        return joined(broken_text(json.dumps(header), draw), body)
    if draw.random() < 0.2:  # a name that is there twice
        key = draw.choice(list(header))
        return joined(json.dumps(header)[:-1] + f", {json.dumps(key)}: {written(draw.choice(VALUES))}}}", body)
    changed = hostile_value(header, draw)
    return joined(changed if isinstance(changed, dict) else written(changed), body)


def _other_entry(data: bytes, draw: random.Random) -> bytes:
    """One tensor with another dtype, shape, place or name than its bytes have."""
    header, body = split(data)
    key = draw.choice([name for name in header if name != "__metadata__"])
    entry = dict(header[key])
    kind = draw.randrange(4)
    if kind == 0:
        entry["dtype"] = draw.choice(list(DTYPES))
    elif kind == 1:
        shape = list(entry["shape"]) or [1]
        shape[draw.randrange(len(shape))] = draw.choice((0, 1, -1, 2**31, 2**63, 2**64, 1.5, "4", None, [2]))
        entry["shape"] = draw.choice((shape, shape[::-1], [1] * 100 + shape, [], [2**32, 2**32], [0, 2**40]))
    elif kind == 2:
        start, end = entry["data_offsets"]
        moved = (
            [end, start],
            [start, end + 4],
            [start + 1, end + 1],
            [0, len(body)],
            [2**63, 2**64],
            [-1, end],
            [0, 0],
        )
        entry["data_offsets"] = draw.choice(moved)
    else:
        header[draw.choice(NAMES) + draw.choice(ENDINGS)] = entry
        return joined(header, body)
    return joined({**header, key: entry}, body)


def _other_metadata(data: bytes, draw: random.Random) -> bytes:
    """Entries that readers look at with other texts: of JSON its parts, of others anything."""
    header, body = split(data)
    told = dict(header.get("__metadata__", {}))
    for _ in range(draw.choice((1, 1, 3))):
        if told and draw.random() < 0.8:
            key = draw.choice(list(told))
            told[key] = _other_text(told[key], draw)
        else:
            told[draw.choice(NAMES)] = draw.choice(VALUES)
    return joined({**header, "__metadata__": told}, body)


def _other_text(text: Any, draw: random.Random) -> Any:
    if not isinstance(text, str):
        return draw.choice(VALUES)
    if text and text[0] in "{[" and draw.random() < 0.8:
        return hostile_json(text, draw)
    return draw.choice((draw.choice(VALUES), written(draw.choice(VALUES)), broken_text(text, draw)))


def _other_tensors(data: bytes, draw: random.Random) -> bytes:
    """A sound container: some tensors with other names, shapes, formats and random bits, offsets that fit."""
    header, body = split(data)
    told = header.pop("__metadata__", None)
    found: list[tuple[str, str, list[int], bytes]] = []
    often = draw.choice((0.05, 0.3))
    for key, entry in header.items():
        name, dtype, shape = key, entry["dtype"], list(entry["shape"])
        content = body[slice(*entry["data_offsets"])]
        if draw.random() < often:
            name = draw.choice((key, key, key.replace("down", "up"), draw.choice(NAMES) + draw.choice(ENDINGS)))
        if draw.random() < often:
            dtype = draw.choice(list(DTYPES))
            content = b""
        if draw.random() < often:
            shape = draw.choice(
                (shape[::-1], [*shape, 1, 1], [*shape, 3, 3], shape[:-1], [0, *shape], [*shape, 2], [1] * 70)
            )
            content = b""
        bits = DTYPES.get(dtype, 8)
        for side in shape:
            bits *= side
        found.append((name, dtype, shape, content or draw.randbytes(bits // 8)))
    return joined(_placed(found, told), b"".join(content for *_, content in found))


def _placed(found: list[tuple[str, str, list[int], bytes]], told: Any) -> Header:
    header: Header = {} if told is None else {"__metadata__": told}
    at = 0
    for name, dtype, shape, content in found:
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + len(content)]}
        at += len(content)
    return header


def _other_numbers(data: bytes, draw: random.Random) -> bytes:
    """NaN, infinities, the largest, the smallest and denormal numbers in one tensor."""
    header, body = split(data)
    key = draw.choice([name for name in header if name != "__metadata__"])
    start, end = header[key]["data_offsets"]
    size = {"F16": 2, "BF16": 2, "F32": 4, "F64": 8}.get(header[key]["dtype"], 1)
    top = draw.choice((0x7FFF, 0x7F80, 0x7C00, 0xFF80, 0x7BFF, 0x7F7F, 0x0080, 0x0000, 0x8000, 0x0001))
    one = top.to_bytes(2, "little").rjust(size, b"\0") if size > 1 else b"\xff"
    changed = bytearray(body)
    places = range(start, end, size) if draw.random() < 0.5 else [start + size * draw.randrange((end - start) // size)]
    for place in places:
        changed[place : place + size] = one
    return joined(header, bytes(changed))
