"""Where in a model a layer lies: the block of every canonical stem, and the blocks that an architecture has.

Names are those that kohya's tools made usual: IN00 to IN11, MID and OUT00 to OUT11 are the input, middle and output
blocks of a U-Net counted as in the original checkpoints (SDXL: up to 08), TE1 to TE3 the text encoders. The
transformers of SD3 and Flux are numbered as in the model: joint 0, double 0, single 0.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import NamedTuple

__all__ = ["LISTS", "REST", "Block", "block_of", "blocks_of"]


class Block(NamedTuple):
    """One block: its group in capitals ("IN", "MID", "DOUBLE") and its number there, None where there is only one."""

    group: str
    number: int | None = None

    @property
    def digits(self) -> str:
        """The number as it is written: two digits in a U-Net."""
        if self.number is None:
            return ""
        return f"{self.number:02}" if self.group in ("IN", "OUT") else str(self.number)

    def __str__(self) -> str:
        return f"{self.group.lower()} {self.number}" if self.group in _TRANSFORMERS else self.group + self.digits


REST = Block("REST")
"""What lies in no block: embeddings of time and size, the last layers."""

_TRANSFORMERS = ("JOINT", "DOUBLE", "SINGLE")
_PER_LEVEL = 3  # SD 1.5 has two residual blocks and a change of size on each level, or three of them on the way up


def _numbered(group: str) -> Callable[..., Block]:
    return lambda number: Block(group, int(number))


def _text_encoder(number: str | None) -> Block:
    return Block("TE", int(number or 1))


# Diffusers' spelling (SD 1.5), the original one (SDXL), transformers by the host's names and by diffusers', texts.
_TABLE: tuple[tuple[re.Pattern[str], Callable[..., Block]], ...] = (
    (re.compile(r"lora_unet_conv_in"), lambda: Block("IN", 0)),
    (
        re.compile(r"lora_unet_down_blocks_(\d+)_(?:resnets|attentions)_(\d+)_.+"),
        lambda level, index: Block("IN", _PER_LEVEL * int(level) + int(index) + 1),
    ),
    (
        re.compile(r"lora_unet_down_blocks_(\d+)_downsamplers_0_conv"),
        lambda level: Block("IN", _PER_LEVEL * int(level) + _PER_LEVEL),
    ),
    (re.compile(r"lora_unet_mid(?:dle)?_block_.+"), lambda: Block("MID")),
    (
        re.compile(r"lora_unet_up_blocks_(\d+)_(?:resnets|attentions)_(\d+)_.+"),
        lambda level, index: Block("OUT", _PER_LEVEL * int(level) + int(index)),
    ),
    (
        re.compile(r"lora_unet_up_blocks_(\d+)_upsamplers_0_conv"),
        lambda level: Block("OUT", _PER_LEVEL * int(level) + _PER_LEVEL - 1),
    ),
    (re.compile(r"lora_unet_input_blocks_(\d+)_.+"), _numbered("IN")),
    (re.compile(r"lora_unet_output_blocks_(\d+)_.+"), _numbered("OUT")),
    (re.compile(r"lora_unet_joint_blocks_(\d+)_.+"), _numbered("JOINT")),
    (re.compile(r"lora_unet_double_blocks_(\d+)_.+"), _numbered("DOUBLE")),
    (re.compile(r"lora_unet_single_blocks_(\d+)_.+"), _numbered("SINGLE")),
    (re.compile(r"transformer\.single_transformer_blocks\.(\d+)\..+"), _numbered("SINGLE")),
    (re.compile(r"lora_unet_(?:img|txt|time|vector|guidance)_in(?:_.+)?"), lambda: Block("IN")),
    (re.compile(r"lora_unet_final_layer_.+"), lambda: Block("OUT")),
    (re.compile(r"lora_te(\d?)_.+"), _text_encoder),
    (re.compile(r"text_encoder(?:_(\d))?\..+"), _text_encoder),
)
_DIFFUSERS_TRANSFORMER = re.compile(r"transformer\.transformer_blocks\.(\d+)\..+")  # double in Flux, joint in SD3


def block_of(stem: str, architecture: str = "") -> Block:
    """The block of a canonical stem; REST for a layer that lies in none. "flux" tells its dotted names from SD3's."""
    if match := _DIFFUSERS_TRANSFORMER.fullmatch(stem):
        return Block("DOUBLE" if architecture == "flux" else "JOINT", int(match[1]))
    for pattern, block in _TABLE:
        if match := pattern.fullmatch(stem):
            return block(*match.groups())
    return REST


def _row(group: str, numbers: Iterable[int]) -> tuple[Block, ...]:
    return tuple(Block(group, number) for number in numbers)


_MID = (Block("MID"),)
_ENDS = (Block("IN"), Block("OUT"))
_BLOCKS: dict[str, tuple[Block, ...]] = {
    "sd15": (*_row("TE", [1]), *_row("IN", range(12)), *_MID, *_row("OUT", range(12))),
    "sdxl": (*_row("TE", [1, 2]), *_row("IN", range(9)), *_MID, *_row("OUT", range(9))),
    "sd3": (*_row("TE", [1, 2, 3]), *_row("JOINT", range(38))),
    "flux": (*_row("TE", [1, 2, 3]), *_row("DOUBLE", range(19)), *_row("SINGLE", range(38)), *_ENDS),
}


def blocks_of(architecture: str, stems: Iterable[str] = ()) -> tuple[Block, ...]:
    """Every block that an architecture has in its largest model, those of `stems`, and REST; each once, in order."""
    found = (block_of(stem, architecture) for stem in stems)
    blocks = dict.fromkeys((*_BLOCKS.get(architecture, ()), *found))
    return (*(block for block in blocks if block != REST), REST)


_TEXT = (Block("TE", 1), Block("TE", 2), Block("TE", 3))
List = tuple[tuple[Block, ...], ...]


def _each(*rows: Iterable[Block]) -> List:
    return tuple((block,) for row in rows for block in row)


# The lists of numbers of sd-webui-lora-block-weight: which blocks each number is for, by architecture. The short ones
# hold the blocks with attention, the long ones all.
LISTS: dict[str, tuple[List, ...]] = {
    "sd15": (
        (_TEXT, *_each(_row("IN", [1, 2, 4, 5, 7, 8]), _MID, _row("OUT", range(3, 12)))),
        (_TEXT, *_each(_row("IN", range(12)), _MID, _row("OUT", range(12)))),
    ),
    "sdxl": (
        (_TEXT, *_each(_row("IN", [4, 5, 7, 8]), _MID, _row("OUT", range(6)))),
        (_TEXT, *_each(_row("IN", range(9)), _MID, _row("OUT", range(9)))),
    ),
    "flux": (
        (
            *(_TEXT[:1], _TEXT[1:], (Block("IN"),)),
            *_each(_row("DOUBLE", range(19)), _row("SINGLE", range(38)), [Block("OUT")]),
        ),
    ),
}
