"""Strengths of blocks as text: what each form gives, and where an error lies."""

from __future__ import annotations

import pytest

from trilora_core.block_text import PRESETS, read_blocks
from trilora_core.blocks import LISTS, Block, blocks_of
from trilora_core.errors import InputError


def read(text: str, architecture: str = "sd15", preset: str = "ALL") -> dict[str, float]:
    """Block -> strength where it is not 1."""
    known = blocks_of(architecture)
    found = read_blocks(text, architecture, known, preset)
    assert list(found) == list(known)
    return {str(block): value for block, value in found.items() if value != 1.0}


@pytest.mark.parametrize(
    ("text", "architecture", "wanted"),
    [
        ("", "sd15", {}),
        (" \n ", "sd15", {}),
        ("IN04:0.5", "sd15", {"IN04": 0.5}),
        ("in4 : .5,", "sd15", {"IN04": 0.5}),
        ("IN10-IN11:-1, MID:0", "sd15", {"IN10": -1.0, "IN11": -1.0, "MID": 0.0}),
        ("IN10 - 11:2e-1; M00:0\nTE:.7", "sd15", {"TE1": 0.7, "IN10": 0.2, "IN11": 0.2, "MID": 0.0}),
        ("BASE:0.5", "sdxl", {"TE1": 0.5, "TE2": 0.5}),
        ("BASE:0.5, TE2:1", "sdxl", {"TE1": 0.5}),
        ("*:0, IN:1, OUT:1, TE:1, REST:1", "sd15", {"MID": 0.0}),
        ("*:0.5,*:1", "flux", {}),
        ("double 1-2:0.5, S37:2", "flux", {"double 1": 0.5, "double 2": 0.5, "single 37": 2.0}),
        ("IN:0, out:3", "flux", {"IN": 0.0, "OUT": 3.0}),
        ("joint 3:0", "sd3", {"joint 3": 0.0}),
        ("ALL0.5, TE:1, REST:1, IN:1, OUT:1", "sd15", {"MID": 0.5}),
    ],
)
def test_what_a_text_gives(text, architecture, wanted):
    assert read(text, architecture) == wanted


# The seventeen numbers of sd-webui-lora-block-weight's own presets.
KNOWN = {
    "INS": "1,1,1,1,0,0,0,0,0,0,0,0,0,0,0,0,0",
    "IND": "1,0,0,0,1,1,1,0,0,0,0,0,0,0,0,0,0",
    "INALL": "1,1,1,1,1,1,1,0,0,0,0,0,0,0,0,0,0",
    "MIDD": "1,0,0,0,1,1,1,1,1,1,1,1,0,0,0,0,0",
    "OUTD": "1,0,0,0,0,0,0,0,1,1,1,1,0,0,0,0,0",
    "OUTS": "1,0,0,0,0,0,0,0,0,0,0,0,1,1,1,1,1",
    "OUTALL": "1,0,0,0,0,0,0,0,1,1,1,1,1,1,1,1,1",
}


@pytest.mark.parametrize("name", KNOWN)
def test_presets_are_the_known_ones_where_attention_is(name):
    attention = [block for blocks in LISTS["sd15"][0] for block in blocks]
    known = blocks_of("sd15")
    by_name, by_list = read_blocks(name, "sd15", known), read_blocks(KNOWN[name], "sd15", known)
    assert all(by_name[block] == by_list[block] for block in attention if block in known)
    assert by_name == read_blocks("", "sd15", known, preset=name)
    assert by_list[Block("IN", 3)] == 0  # a block that the list does not name


def test_every_preset_is_readable_where_it_is_offered():
    for architecture in ("sd15", "sdxl"):
        assert all(read_blocks(name, architecture, blocks_of(architecture)) for name in PRESETS)
    assert read("", "sdxl", "OUTD").keys() & {"OUT00", "OUT02", "TE1", "TE2"} == set()
    assert set(read("NONE", "flux").values()) == {0.0} and read("", "flux", "ALL0.5")["single 3"] == 0.5


def test_lists_of_every_length():
    long = ",".join(str(n) for n in range(26))
    found = read(long)
    assert found["TE1"] == 0 and found["IN02"] == 3 and found["MID"] == 13 and found["OUT11"] == 25
    found = read(" ".join(str(n) for n in range(12)), "sdxl")
    assert found["TE1"] == found["TE2"] == 0 and found["IN05"] == 2 and found["MID"] == 5 and found["OUT05"] == 11
    assert found["OUT06"] == 0
    assert read(",".join(["1"] * 20), "sdxl") == {}
    found = read(",".join(str(n) for n in range(61)), "flux")
    assert (found["TE1"], found.get("TE2", 1.0), found["IN"], found["double 0"]) == (0, 1, 2, 3)
    assert (found["double 18"], found["single 0"], found["single 37"], found["OUT"]) == (21, 22, 59, 60)


@pytest.mark.parametrize(
    ("text", "architecture", "said"),
    [
        ("IN04:0.5, MDI:1", "sd15", "character 11: found 'MDI', expected one of TE1, IN00-11, MID, OUT00-11, REST, *"),
        ("IN12:1", "sd15", "character 3: found '12', expected one of IN00-11"),
        ("IN09:1", "sdxl", "character 3: found '09', expected one of IN00-08"),
        ("IN04-20:1", "sd15", "character 6: found '20', expected one of IN04-11"),
        ("IN04-OUT05:1", "sd15", "character 6: found 'OUT05', expected one of IN04-11"),
        ("IN08-04:1", "sd15", "character 6: found '04', expected one of IN08-11"),
        ("IN04", "sd15", "character 5: found the end, expected a colon and a strength, such as :0.5"),
        ("IN04=1", "sd15", "character 5: found '=', expected a colon and a strength, such as :0.5"),
        ("IN04:", "sd15", "character 6: found the end, expected a number, such as 0.5"),
        ("IN04:R", "sd15", "character 6: found 'R', expected a number, such as 0.5"),
        ("IN04:0,5", "sd15", "character 8: found '5', expected one of TE1"),
        ("IN04:0.5 MID:1", "sd15", "character 10: found 'MID', expected a comma or the end"),
        ("OUTSS, TE:1", "sd15", "character 1: the preset is 'OUTSS'; known for sd15 adapters: ALL, NONE, ALL0.5, INS"),
        ("INS", "flux", "character 1: the preset is 'INS'; known for flux adapters: ALL, NONE, ALL0.5"),
        ("1,0,R", "sd15", "character 5: found 'R', expected a number: a list of numbers stands alone"),
        ("1,0", "sd15", "blocks holds 2 numbers; wanted 17 or 26 numbers for sd15"),
        ("1,0", "sd3", "blocks holds 2 numbers; wanted names, such as *:0.5 for sd3"),
        ("MID:1e999", "sd15", "character 5: found '1e999', expected a finite number"),
    ],
)
def test_a_typo_is_shown_where_it_is(text, architecture, said):
    with pytest.raises(InputError) as error:
        read(text, architecture)
    assert str(error.value).removeprefix("blocks, ").startswith(said)
