from __future__ import annotations

import builtins
import math

import numpy
import pytest
from PIL import Image

from trilora_core.errors import InputError
from trilora_core.plots import picture_grid, plot_losses, short_name, smooth

matplotlib = pytest.importorskip("matplotlib")


def colours(path) -> set[tuple[int, int, int]]:
    with Image.open(path) as picture:
        return {colour for _, colour in picture.convert("RGB").getcolors(1 << 20)}


def test_smooth_is_the_mean_of_the_window_and_skips_what_is_not_finite():
    values = numpy.array([1.0, 2.0, math.nan, 4.0, 5.0])
    assert smooth(values, 3).tolist() == pytest.approx([1.5, 1.5, 3.0, 4.5, 4.5])


def test_smooth_of_nothing_finite_is_not_a_number():
    assert numpy.isnan(smooth(numpy.array([math.nan, math.nan]), 3)).all()


@pytest.mark.parametrize("count", [1, 3, 40])
def test_losses_of_any_length_are_drawn(tmp_path, count):
    path = tmp_path / "loss.png"
    plot_losses([1.0 / (i + 1) for i in range(count)], path)
    assert len(colours(path)) > 10


def test_a_dropped_step_is_marked(tmp_path):
    path = tmp_path / "loss.png"
    accent = (194, 87, 26)
    plot_losses([0.5] * 20, path)
    assert accent not in colours(path)
    plot_losses([0.5] * 10 + [math.nan] + [0.5] * 9, path)
    assert accent in colours(path)


def test_no_losses_is_bad_input(tmp_path):
    with pytest.raises(InputError, match="no loss to plot"):
        plot_losses([], tmp_path / "loss.png")
    assert not (tmp_path / "loss.png").exists()


def test_without_matplotlib_the_error_says_how_to_install_it(tmp_path, monkeypatch):
    real = builtins.__import__

    def missing(name, *rest):
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(InputError, match="pip install"):
        plot_losses([1.0], tmp_path / "loss.png")


def test_the_grid_holds_every_picture_in_its_place(tmp_path):
    rows = [[Image.new("RGB", (64, 64), (40 * x, 90 * y, 200)) for x in range(3)] for y in range(2)]
    path = tmp_path / "grid.png"
    picture_grid(rows, path, row_labels=["first", "second"], column_labels=["0", "0.5", "1"], title="Grid", cell=128)
    with Image.open(path) as sheet:
        middle = sheet.height - 74  # 64 pixels above the lower edge of the last row, 10 of margin
        found = [sheet.getpixel((128 + column * 138 + 64, middle)) for column in range(3)]
    assert found == [(0, 90, 200), (40, 90, 200), (80, 90, 200)]


def test_a_picture_larger_than_the_cell_is_not_shrunk(tmp_path):
    path = tmp_path / "grid.png"
    picture_grid([[Image.new("RGB", (300, 300), "red")]], path, row_labels=["a"], column_labels=["b"], cell=100)
    with Image.open(path) as sheet:
        reds = sum(sheet.getpixel((x, sheet.height - 150)) == (255, 0, 0) for x in range(sheet.width))
    assert reds == 300


def test_labels_that_do_not_match_are_bad_input(tmp_path):
    with pytest.raises(InputError, match="row labels"):
        picture_grid([[Image.new("RGB", (8, 8))]], tmp_path / "x.png", row_labels=[], column_labels=["a"])


@pytest.mark.parametrize(
    ("stem", "short"),
    [
        ("lora_unet_down_blocks_1_attentions_0_transformer_blocks_2_attn2_to_out_0", "down 1.0 block 2 attn2 out"),
        ("lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q", "mid.0 block 0 attn1 q"),
        ("lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_k", "input 4 1 block 0 attn1 k"),
        ("lora_unet_double_blocks_7_img_attn_qkv", "double 7 img attn qkv"),
        ("transformer.transformer_blocks.3.attn.to_q", "block 3.attn.to q"),
        ("lora_te1_text_model_encoder_layers_5_self_attn_q_proj", "text1 5 self attn q proj"),
    ],
)
def test_short_names_keep_what_tells_layers_apart(stem, short):
    assert short_name(stem) == short
