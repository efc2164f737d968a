"""What a grid draws and where: axes, the model alone once, bounds, and texts with their mistakes."""

from __future__ import annotations

import pytest
from PIL import Image

from trilora_core.errors import InputError
from trilora_core.grid import COLUMNS, MOST, Cell, parse_prompts, parse_strengths, plan
from trilora_core.grid_sheet import fit, labelled_sheet


def test_strengths_across_prompts_down() -> None:
    found = plan(["a cat", "a dog"], ["style"], [0.0, 0.5, 1.0])
    assert found.column_labels == ("without adapter", "strength 0.5", "strength 1")
    assert found.row_labels == ("a cat", "a dog") and found.same == ("style",)
    assert found.cells[1] == (Cell(1, None, 0.0), Cell(1, 0, 0.5), Cell(1, 0, 1.0))


def test_the_model_alone_is_drawn_once_for_each_prompt() -> None:
    """Every layout, with strength 0 twice over and two adapters: each picture is asked for once, and shown in place."""
    for columns in COLUMNS:
        found = plan(["a cat", "a dog"], ["one", "two"], [0.0, 1.0, 0.0], columns)
        work = found.work()
        assert work[None, 0.0] == [Cell(0, None, 0.0), Cell(1, None, 0.0)]
        assert sum(map(len, work.values())) == 6 and set(work) == {(None, 0.0), (0, 1.0), (1, 1.0)}
        drawn = {cell: cell for cells in work.values() for cell in cells}
        assert found.rows(drawn) == [list(row) for row in found.cells]
        assert len(found.row_labels) == len(found.cells) and len(found.column_labels) == len(found.cells[0])


def test_adapters_across() -> None:
    found = plan(["a cat"], ["one", "two"], [0.0, 1.0], "adapters")
    assert found.column_labels == ("without adapter", "one", "two") and found.same == ("strength 1",)
    assert found.cells == ((Cell(0, None, 0.0), Cell(0, 0, 1.0), Cell(0, 1, 1.0)),)
    several = plan(["a cat"], ["one", "two"], [0.5, 1.0], "adapters")
    assert several.column_labels == ("one\nstrength 0.5", "one\nstrength 1", "two\nstrength 0.5", "two\nstrength 1")


def test_prompts_across_is_adapters_across_turned() -> None:
    across = plan(["a cat", "a dog", "a fish"], ["one", "two"], [0.0, 1.0], "adapters")
    down = plan(["a cat", "a dog", "a fish"], ["one", "two"], [0.0, 1.0], "prompts")
    assert down.cells == tuple(zip(*across.cells, strict=True))
    assert (down.row_labels, down.column_labels) == (across.column_labels, across.row_labels)


def test_rows_name_the_adapter_where_there_are_several() -> None:
    assert plan(["a cat"], ["one", "two"], [1.0]).row_labels == ("one\na cat", "two\na cat")


def test_what_cannot_be_laid_out_is_bad_input() -> None:
    assert len(plan(["a cat"] * MOST, ["one"], [1.0]).cells) == MOST
    with pytest.raises(InputError, match=r"101 rows of 1, 101 pictures; at most 100"):
        plan(["a cat"] * (MOST + 1), ["one"], [1.0])
    with pytest.raises(InputError, match="no adapter"):
        plan(["a cat"], [], [1.0])
    with pytest.raises(InputError, match="known: strengths, adapters, prompts"):
        plan(["a cat"], ["one"], [1.0], "rows")
    with pytest.raises(InputError, match="strength nan is out of range"):
        plan(["a cat"], ["one"], [float("nan")])


def test_strengths_are_read_and_mistakes_are_placed() -> None:
    assert parse_strengths("0, 0.5,1;\n-1  1e0") == [0.0, 0.5, 1.0, -1.0, 1.0]
    assert str(parse_strengths("-0")[0]) == "0.0"
    for text, said in (
        ("0, a half", "character 4: 'a' is no number"),
        ("0 1 21", "character 5: '21' is out of range"),
        ("nan", "character 1: 'nan' is out of range"),
        (" ,; ", "strengths is empty"),
    ):
        with pytest.raises(InputError, match=said):
            parse_strengths(text)


def test_prompts_are_lines() -> None:
    assert parse_prompts("a cat\r\n\n  a  dog \n") == ["a cat", "a dog"]
    with pytest.raises(InputError, match="one prompt a line"):
        parse_prompts(" \n ")


def test_a_sheet_of_wide_pictures_has_no_square_cells_and_holds_long_labels() -> None:
    pictures = [[Image.new("RGB", (64, 32), (200, 90 * x, 40 * y)) for x in range(2)] for y in range(2)]
    long = "a very long prompt about " + "many words " * 60
    sheet = labelled_sheet(
        pictures, row_labels=[long, "赤い猫"], column_labels=["a name\nstrength 1", long], title="T", note="n", cell=128
    )
    plain = labelled_sheet(pictures, row_labels=["a", "b"], column_labels=["a", "b"], cell=128)
    assert plain.size[0] == sheet.size[0] == 128 + 2 * 138 + 10
    assert plain.getpixel((128 + 64, plain.height - 42)) == (200, 0, 40)  # 32 above the lower edge, and the margin
    assert plain.height < 128 + 2 * 74  # cells are 64 high
    ink = sheet.crop((10, 0, 118, sheet.height)).convert("L").point(lambda value: 255 * (value < 128)).getbbox()
    assert ink is not None and ink[2] <= 108, "letters ran into the pictures"


def test_the_longer_side_fills_the_cell() -> None:
    assert fit(Image.new("RGB", (32, 64)), 128).size == (64, 128)
    assert fit(Image.new("RGB", (640, 320)), 128).size == (128, 64)
    assert fit(Image.new("RGB", (4000, 1)), 128).size == (128, 1)
