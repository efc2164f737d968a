"""Pictures of adapters: everything is drawn, for every kind of model, at its size, always the same."""

from __future__ import annotations

import numpy
import pytest
import torch
from PIL import Image

from tests.adapters import make_adapter, make_layer
from trilora_core.anatomy import anatomy
from trilora_core.canvas import Canvas, Frame, fitting, round_ticks, viridis
from trilora_core.errors import InputError
from trilora_core.fileformat import Adapter, Layer
from trilora_core.plots_map import KIND_COLOURS, draw_map, shade
from trilora_core.plots_spectrum import draw_adapters, plot_adapters
from trilora_core.spectral import SVD

UNET = [
    f"lora_unet_{place}_transformer_blocks_0_attn{n}_to_q"
    for place in ("down_blocks_0_attentions_1", "mid_block_attentions_0", "up_blocks_2_attentions_1")
    for n in (1, 2)
]
TEXT = ["lora_te_text_model_encoder_layers_0_mlp_fc1"]
FLUX = [f"lora_unet_{part}_blocks_{n}_linear1" for part in ("double", "single") for n in range(14)]


def rgb(colour: str) -> tuple[int, ...]:
    return tuple(int(colour[at : at + 2], 16) for at in (1, 3, 5))


def has(pixels: numpy.ndarray, colour: str) -> bool:
    return bool((pixels == rgb(colour)).all(axis=-1).any())


def pixels_of(*adapters: Adapter) -> numpy.ndarray:
    return numpy.asarray(draw_adapters(adapters, [f"name {index}" for index in range(len(adapters))]).picture())


@pytest.mark.parametrize("stems", [UNET, UNET + TEXT, TEXT, FLUX, ["strange"], UNET * 1 + ["strange"]])
def test_one_adapter_of_any_kind(stems: list[str]) -> None:
    adapter = make_adapter(stems)
    pixels = pixels_of(adapter)
    assert pixels.shape == (1260, 1800, 3)
    for kind in {layer.kind for layer in anatomy(adapter, "").layers}:
        assert has(pixels, KIND_COLOURS[kind]), kind
    assert has(pixels, shade(1.0)), "no block is the strongest"


@pytest.mark.parametrize("count", [2, 3, 4, 6])
def test_several_adapters_share_a_page(count: int) -> None:
    pixels = pixels_of(*(make_adapter(UNET, seed=7 * index) for index in range(count)))
    assert pixels.shape[1] == 1800
    for colour in ("#0b7a75", "#d1495b", "#e0a030", "#30638e", "#6d597a", "#8d99ae")[:count]:
        assert has(pixels, colour)


def test_strangers_mixed_ranks_and_zeros_are_drawn(tmp_path) -> None:
    zero = Adapter({UNET[0]: Layer(SVD(torch.eye(16, 1), torch.zeros(1), torch.eye(1, 16)))}, {})
    mixed = Adapter({stem: make_layer(16, 16, 1 + index) for index, stem in enumerate(UNET)}, {})
    names = ["zero", "a name that is much longer than the place that there is for it, and then some"]
    plot_adapters([zero, mixed], names, tmp_path / "both.png")
    for adapter in (zero, mixed, make_adapter(["strange"])):
        plot_adapters([adapter], ["x"], tmp_path / "one.png")
    plot_adapters([zero, make_adapter(FLUX)], ["a", "b"], tmp_path / "none_in_common.png")
    with Image.open(tmp_path / "both.png") as picture:
        assert picture.format == "PNG"


def test_the_map_darkens_where_the_energy_is_and_is_the_same_every_time() -> None:
    adapter = make_adapter(UNET)
    for part in adapter.layers[UNET[2]].svd.s, adapter.layers[UNET[3]].svd.s:
        part.mul_(100)
    pages = []
    for _ in range(2):
        canvas = Canvas(800, 500)
        draw_map(Frame(canvas, 0, 0, 800, 480), anatomy(adapter, "x"))
        pages.append(numpy.asarray(canvas.picture()))
    assert (pages[0] == pages[1]).all()
    dark = numpy.argwhere((pages[0] == rgb(shade(1.0))).all(axis=-1))
    across, down = dark.mean(axis=0)[::-1]
    assert 250 < across < 500 and down > 300, "the middle block lies below, between down and up"


def test_a_second_reader_of_the_numbers() -> None:
    assert round_ticks(0, 16, 8) == [0, 2, 4, 6, 8, 10, 12, 14, 16]
    assert round_ticks(0, 0.9, 5) == [0, 0.2, 0.4, 0.6, 0.8]
    assert viridis(numpy.array([0.0, 1.0, 7.0])).tolist() == [[68, 1, 84], [253, 231, 37], [253, 231, 37]]
    assert fitting("short", 500, 14) == "short"
    assert "…" in fitting("a very long name of a style", 80, 14)


@pytest.mark.parametrize("count", [0, 7])
def test_bad_input_is_named(count: int) -> None:
    with pytest.raises(InputError, match="give 1 to 6"):
        draw_adapters([make_adapter(["a"])] * count, ["a"] * count)
    with pytest.raises(InputError, match="no layers"):
        draw_adapters([Adapter({}, {})], ["empty"])
