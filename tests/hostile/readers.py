"""Everything of the core that reads what strangers write, each with a good file to begin with."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy
import torch
from PIL import Image, ImageCms
from safetensors.torch import save_file

from tests.adapters import make_layer
from tests.test_calibrate import TINY, calibrated
from tests.test_train import CONFIG, go, make_run
from trilora_core.block_text import read_blocks
from trilora_core.blocks import blocks_of
from trilora_core.calibration import read_calibration, read_facts, write_calibration
from trilora_core.card import adapter_card
from trilora_core.checkpoint import goes_on, load_state, save_state
from trilora_core.cli.inspect import report, table
from trilora_core.cli.options import Given, read_given
from trilora_core.cli.parser import Arguments
from trilora_core.cli.run_report import run_report, run_table
from trilora_core.config import TrainConfig
from trilora_core.config_data import DataConfig
from trilora_core.config_json import from_dict, from_json, to_json
from trilora_core.cover import to_picture, with_cover
from trilora_core.data.imagefolder import read_metadata as read_captions
from trilora_core.data.pictures import ENDINGS, inspect_picture, open_alpha, open_mask, open_picture
from trilora_core.errors import InputError
from trilora_core.fileformat import Adapter, read_adapter, stored_dtype, write_adapter
from trilora_core.grid import parse_prompts, parse_strengths
from trilora_core.liverun import LiveRun
from trilora_core.metadata import adapter_names, architecture_metadata, describe
from trilora_core.runlog import RunLog, _lines_until
from trilora_core.runrecord import read_log
from trilora_core.schedule import read_ranks
from trilora_core.session import find_finished

from .mutants import broken_text, hostile_bytes, hostile_json, hostile_safetensors, hostile_value, written

Mutate = Callable[[bytes, random.Random], bytes]


@dataclass(frozen=True)
class Reader:
    """How a kind of file is read, what a good one is, and how bad ones are made of it."""

    name: str
    suffix: str
    seeds: tuple[bytes, ...]
    mutate: Mutate
    read: Callable[[Path], Any]


STEM = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn{}_to_{}"


def adapters(folder: Path) -> tuple[bytes, ...]:
    """Ours with every entry of metadata that is read; kohya's with alphas; PEFT's with its settings; convolutions."""
    stems = [STEM.format(number, kind) for number in (1, 2) for kind in "qkv"]
    layers = {stem: make_layer(12, 16, 3, seed=index) for index, stem in enumerate(stems)}
    layers["lora_unet_down_blocks_0_resnets_0_conv1"] = make_layer(8, 36, 3, kernel=(3, 3))
    layers["lora_te_text_model_encoder_layers_0_self_attn_q_proj"] = make_layer(8, 8, 2)
    told = architecture_metadata("sd15") | {
        "trilora.config": to_json(TrainConfig()),
        "trilora.history": json.dumps({"measures": [[5, 0.1, 0.2]], "best": "a"}),
        "trilora.fingerprint": "print",
        "trilora.finished": "true",
        "trilora.losses": "0.5 0.25",
        "trilora.ended": "steps",
        "trilora.resize": json.dumps({"kept_energy": 0.5}),
        "trilora.extract": json.dumps({"tuned": "a", "base": "b", "relative_error": 0.5}),
        "trilora.base_name": "base",
        "ss_network_args": json.dumps({"conv_dim": 4, "algo": "trilora"}),
        "ss_steps": "5",
        "ss_max_train_steps": "10",
        "ss_num_train_images": "5",
        "ss_learning_rate": "1e-4",
        "ss_text_encoder_lr": "1e-5",
        "ss_tag_frequency": json.dumps({"a": {"b": 3}}),
        "modelspec.title": "title",
        "modelspec.trigger_phrase": "a, b",
        "modelspec.merged_from": "a, b",
    }
    picture = torch.rand(3, 16, 16, generator=torch.Generator().manual_seed(0))
    made = [folder / f"{name}.safetensors" for name in ("ours", "kohya", "peft")]
    write_adapter(made[0], with_cover(Adapter(layers, told), to_picture(picture)), dtype=torch.float16)
    generator = torch.Generator().manual_seed(1)
    kohya: dict[str, torch.Tensor] = {}
    for stem in stems[:3]:
        kohya[f"{stem}.lora_down.weight"] = torch.randn(4, 16, generator=generator)
        kohya[f"{stem}.lora_up.weight"] = torch.randn(12, 4, generator=generator)
        kohya[f"{stem}.alpha"] = torch.tensor(2.0)
    save_file(kohya, made[1], {"ss_network_dim": "4", "ss_base_model_version": "sd_v1"})
    peft = {
        f"unet.down_blocks.{i}.attentions.0.transformer_blocks.0.attn1.to_q.lora_{part}.weight": torch.randn(
            *shape, generator=generator
        )
        for i in range(2)
        for part, shape in (("A", (4, 16)), ("B", (12, 4)))
    }
    settings = {"unet.lora_alpha": 8, "unet.alpha_pattern": {"attn1.to_q": 4}, "unet.use_rslora": False, "unet.r": 4}
    save_file(peft, made[2], {"lora_adapter_metadata": json.dumps(settings)})
    return tuple(path.read_bytes() for path in made)


def read_as_adapter(path: Path) -> None:
    """All that a node or the command line shows of a file, and what it would save it as."""
    adapter = read_adapter(path)
    stored_dtype(path)
    describe(adapter)
    adapter_names([adapter, adapter])
    json.dumps(adapter_card(adapter), allow_nan=False)
    table(path, adapter)
    table(path, adapter, every_layer=True)
    json.dumps(report(path, adapter), allow_nan=False)
    find_finished(path, "print")
    write_adapter(path.with_name("again.safetensors"), adapter, dtype=torch.float32)
    read_adapter(path.with_name("again.safetensors"))


def states(folder: Path) -> tuple[bytes, ...]:
    run = make_run()
    go(run, 2)
    save_state(folder / "a.state", run, {"best": {"step": 1}})
    return ((folder / "a.state").read_bytes(),)


def state_reader() -> Callable[[Path], None]:
    """Continue one run again and again; after a refusal it must be as it was."""
    run = make_run()
    mark = run.fingerprint(with_steps=False)

    def read(path: Path) -> None:
        run.step, run.losses, before = 0, [], _values(run)
        goes_on(path, mark, 40)
        try:
            load_state(path, run)
        except Exception:
            assert run.step == 0 and all(torch.equal(a, b) for a, b in zip(before, _values(run), strict=True))
            raise

    return read


def _values(run: Any) -> list[torch.Tensor]:
    return [parameter.detach().clone() for _, parameter in run.trainable.named_parameters()]


def calibrations(folder: Path) -> tuple[bytes, ...]:
    write_calibration(folder / "a", calibrated())
    write_calibration(folder / "b", calibrated((TINY, TINY)))
    return (folder / "a").read_bytes(), (folder / "b").read_bytes()


def read_as_calibration(path: Path) -> None:
    read_facts(path)
    found = read_calibration(path)
    found.directions(dict.fromkeys(found.inputs, 2))


def logs(folder: Path) -> tuple[bytes, ...]:
    path = folder / "run.safetensors"
    with RunLog(path, 0) as log:
        log.write("start", 0, {"steps": 9, "config": json.loads(to_json(CONFIG)), "base": {"name": "b"}, "time": "t"})
        for step in range(1, 5):
            log.write("step", step, {"loss": 0.5, "learning_rate": 1e-4, "grad_norm": 1.0, "seconds": 0.1})
        log.write("measure", 4, {"validation": 0.5, "drift": 0.1})
        layers = {"a": {"values": [2.0, 1.0], "effective_rank": 1.5, "norm": 2.0}}
        log.write("spectrum", 4, {"effective_rank": 1.5, "norm": 2.0, "layers": layers})
        log.write("preview", 4, {"files": ["a.png"]})
        log.write("file", 4, {"path": "a", "what": "result"})
        log.write("end", 4, {"ended": "steps", "file": "a"})
    return ((folder / "run.log.jsonl").read_bytes(),)


def hostile_lines(data: bytes, draw: random.Random) -> bytes:
    lines = data.decode("utf-8").split("\n")
    for place in draw.choices(range(len(lines)), k=draw.choice((1, 1, 3))):
        lines[place] = hostile_json(lines[place], draw)
    if draw.random() < 0.1:
        return hostile_bytes("\n".join(lines).encode("utf-8", "surrogatepass") or b"{}", draw)
    return "\n".join(lines).encode("utf-8", "surrogatepass")


def read_as_log(path: Path) -> None:
    record = read_log(path)
    run_table(record)
    json.dumps(run_report(record))
    assert len(record.losses()) <= 1_000_000
    live = LiveRun("name", record.planned)
    live.recall(record, path.parent / "previews")
    json.dumps(live.whole(), allow_nan=False)
    _lines_until(path, 3)


TOML = """steps = 10
batch_size = 2
seed = 3
[adapter]
rank = 16
alpha = 8.0
init = "svd-mean"
[adapter.layers]
which = "attention"
include = ["*attn1*"]
[optimizer]
learning_rate = 1e-4
[loss]
min_snr_gamma = 5
[data]
folder = "pictures"
[data.masks]
source = "alpha"
"""


def hostile_toml(data: bytes, draw: random.Random) -> bytes:
    text = data.decode()
    for _ in range(draw.choice((1, 1, 3))):
        lines = text.split("\n")
        place = draw.randrange(len(lines))
        name = lines[place].partition("=")[0]
        value = written(hostile_value([1, {"a": 2}], draw) if draw.random() < 0.3 else hostile_value(0, draw))
        if "=" in lines[place] and draw.random() < 0.7:
            lines[place] = f"{name}= {value}"
        text = broken_text("\n".join(lines), draw) if draw.random() < 0.3 else "\n".join(lines)
    return text.encode("utf-8", "surrogatepass")


def read_as_toml(path: Path) -> None:
    given: Given = read_given(Arguments(config=path))
    values = dict(given.values)
    from_dict(DataConfig, values.pop("data", {}))
    from_dict(TrainConfig, values)


def captions(folder: Path) -> tuple[bytes, ...]:
    rows = ({"file_name": "a.png", "text": "a cat"}, {"file_name": "b.jpg", "text": "b"})
    return ("\n".join(map(json.dumps, rows)).encode(),)


def read_as_captions(path: Path) -> None:
    path.replace(path.with_name("metadata.jsonl"))
    read_captions(path.parent, "metadata.jsonl", ("a.png", "b.jpg"))


def hostile_text(data: bytes, draw: random.Random) -> bytes:
    text = data.decode()
    for _ in range(draw.choice((1, 2, 5))):
        text = broken_text(text, draw)
    return text.encode("utf-8", "surrogatepass")


def read_as_texts(path: Path) -> None:
    """The small languages of the widgets; refused is what none of them understands."""
    text = path.read_bytes().decode("utf-8", "surrogateescape")
    refused: list[InputError] = []
    known = blocks_of("sd15", [])
    languages: tuple[Callable[[], Any], ...] = (
        lambda: read_blocks(text, "sd15", known),
        lambda: read_blocks(text, "", known),
        lambda: parse_strengths(text),
        lambda: read_ranks(text, 16),
        lambda: from_json(TrainConfig, text),
    )
    parse_prompts(text)
    for read in languages:
        try:
            read()
        except InputError as error:
            refused.append(error)
    if len(refused) == len(languages):
        raise max(refused, key=lambda error: len(str(error)))


def pictures(folder: Path) -> tuple[bytes, ...]:
    """One of each format, with what comes along: orientation, colour profile, palette, frames, 16 bits, alpha."""
    noise = numpy.random.default_rng(0).integers(0, 256, (24, 32, 4), dtype=numpy.uint8)
    colour, four = Image.fromarray(noise[..., :3]), Image.fromarray(noise)
    exif = Image.Exif()
    exif[0x0112] = 6
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    palette = colour.quantize(16)
    palette.info["transparency"] = 3
    deep = Image.fromarray(noise[..., 0].astype(numpy.uint16) * 257)
    found: list[bytes] = []
    made: list[tuple[Image.Image, str, dict[str, Any]]] = [
        (four, "PNG", {"exif": exif, "icc_profile": profile}),
        (palette, "PNG", {}),
        (deep, "PNG", {}),
        (colour, "JPEG", {"exif": exif, "icc_profile": profile}),
        (colour.convert("CMYK"), "JPEG", {}),
        (four, "WEBP", {"save_all": True, "append_images": [four.rotate(90)], "exif": exif}),
        (palette, "GIF", {"save_all": True, "append_images": [palette.rotate(90)]}),
        (four, "TIFF", {"compression": "tiff_lzw", "exif": exif}),
        (deep, "TIFF", {}),
        (colour, "BMP", {}),
        *([(four, "AVIF", {})] if ".avif" in ENDINGS else []),
    ]
    for image, kind, options in made:
        image.save(folder / f"{len(found)}", kind, **options)
        found.append((folder / f"{len(found)}").read_bytes())
    return tuple(found)


def read_as_picture(path: Path) -> None:
    data = path.read_bytes()
    inspect_picture(data, path.name)
    open_picture(data, path.name)
    open_alpha(data, path.name)
    open_mask(data, path.name)


def readers(folder: Path) -> tuple[Reader, ...]:
    """Every reader; `folder` is for the good files that they begin with."""
    texts = (
        "IN04-08:0.5, MID:1, OUT:0, TE:0.7",
        "0, 0.5, 1",
        "4@0, 16@0.5, all@0.9",
        "1,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0",
    )
    return (
        Reader("adapter", ".safetensors", adapters(folder), hostile_safetensors, read_as_adapter),
        Reader("state", ".state", states(folder), hostile_safetensors, state_reader()),
        Reader("calibration", ".safetensors", calibrations(folder), hostile_safetensors, read_as_calibration),
        Reader("log", ".log.jsonl", logs(folder), hostile_lines, read_as_log),
        Reader("config", ".toml", (TOML.encode(),), hostile_toml, read_as_toml),
        Reader("captions", ".jsonl", captions(folder), hostile_lines, read_as_captions),
        Reader("picture", ".png", pictures(folder), hostile_bytes, read_as_picture),
        Reader(
            "text",
            ".txt",
            tuple(text.encode() for text in (*texts, to_json(TrainConfig()))),
            hostile_text,
            read_as_texts,
        ),
    )
