"""Hostile files through every reader: the fast part of tests/hostile/soak.py, and every fault that it has found."""

from __future__ import annotations

import json
import struct
import zlib
from base64 import b64encode
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.adapters import make_adapter
from tests.test_train import go, make_run
from trilora_core.__main__ import main
from trilora_core.card import adapter_card
from trilora_core.checkpoint import goes_on, load_state, save_state
from trilora_core.cli.inspect import report, table
from trilora_core.errors import InputError
from trilora_core.fileformat import read_adapter, write_adapter
from trilora_core.metadata import describe
from trilora_core.runlog import RunLog, log_path
from trilora_core.runrecord import read_log
from trilora_core.session import find_finished

from .guard import Fault, outcome
from .mutants import joined, split
from .readers import Reader, readers
from .soak import attack

COUNTS = {"adapter": 60, "state": 20, "calibration": 20}
STEM = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"


@pytest.fixture(scope="module")
def every(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Reader]:
    return {reader.name: reader for reader in readers(tmp_path_factory.mktemp("good"))}


def kinds() -> tuple[str, ...]:
    return ("adapter", "state", "calibration", "log", "config", "captions", "picture", "text")


@pytest.mark.parametrize("name", kinds())
def test_good_files_are_read_and_mutants_do_no_harm(every, tmp_path, name):
    assert tuple(every) == kinds()
    for data in every[name].seeds:
        path = tmp_path / f"good{every[name].suffix}"
        path.write_bytes(data)
        assert outcome(lambda: every[name].read(path), inside=tmp_path) == "read"  # noqa: B023 - called at once
    counts, faults = attack(every[name], COUNTS.get(name, 40), 7, tmp_path)
    assert not faults, "\n".join(faults)
    assert counts["refused"] or name == "log"  # whose bad lines are left out


def test_the_guard_sees_what_it_must(tmp_path):
    def loop() -> None:
        while True:
            pass

    def leave() -> None:
        (tmp_path / "outside").write_text("x")

    def several_lines() -> None:
        error = InputError("a")
        error.args = ("a\nb",)
        raise error

    (tmp_path / "inside").mkdir()
    for read, words in (
        (loop, "took more than"),
        (leave, "did "),
        (lambda: bytearray(1 << 33), "MemoryError"),
        (lambda: ().index(1), "tuple.index"),
        (several_lines, "no clear line"),
        (lambda: __import__("subprocess").run(["true"]), "subprocess.Popen"),
    ):
        with pytest.raises(Fault, match=words):
            outcome(read, inside=tmp_path / "inside", seconds=0.2)
    assert outcome(lambda: (tmp_path / "inside/a").write_text("x"), inside=tmp_path / "inside") == "read"


# --- adapters ---


def saved(path: Path, *, change=None, **metadata: str) -> Path:
    """A good adapter with other metadata; `change` takes its header and tensor bytes."""
    write_adapter(path, make_adapter([STEM], size=8, rank=2), dtype=torch.float32)
    header, body = split(path.read_bytes())
    header["__metadata__"] |= {name.replace("__", "."): value for name, value in metadata.items()}
    if change is not None:
        header, body = change(header, body)
    path.write_bytes(joined(header, body))
    return path


def test_what_a_terminal_obeys_is_spelled_out(tmp_path, capsys):
    bad = "a\x1b[2J\x1b]0;title\x07\nb\u202ec"
    path = saved(tmp_path / "a.safetensors", modelspec__trigger_phrase=bad, ss_sd_model_name=bad)
    assert main(["inspect", str(path)]) == 0
    printed = capsys.readouterr().out
    assert not {"\x1b", "\x07", "\u202e"} & set(printed) and r"a\x1b[2J" in printed
    assert len(describe(read_adapter(path)).split("\n")) == 3 and "\x1b" not in describe(read_adapter(path))
    save_file({f"{bad}.lora_down.weight": torch.ones(2, 2)}, path)
    assert main(["inspect", str(path)]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and said[:-1].isprintable()


def test_metadata_of_megabytes_and_deep_nesting_is_shown_in_bounds(tmp_path):
    large, deep = "word, " * 3_000_000, "[" * 100_000
    path = saved(
        tmp_path / "a.safetensors",
        modelspec__trigger_phrase=large,
        modelspec__title=large,
        ss_sd_model_name=large,
        ss_network_args=deep,
    )
    found: list[int] = []

    def show() -> None:
        adapter = read_adapter(path)
        found.extend([len(json.dumps(adapter_card(adapter))), len(describe(adapter)), len(table(path, adapter))])

    assert outcome(show) == "read" and max(found) < 20_000
    for name in ("trilora.config", "trilora.extract", "ssmd_cover_images", "lora_adapter_metadata"):
        told = {name.replace(".", "__"): deep}
        saved(path, **told)
        assert outcome(lambda: report(path, read_adapter(path)) and table(path, read_adapter(path))) == "refused", name


def test_a_header_as_long_as_the_format_allows_is_no_bomb(tmp_path):
    path = tmp_path / "a.safetensors"
    for length, size in ((99_999_999, 64), (2**63, 64), (100_000_001, 64)):
        path.write_bytes(struct.pack("<Q", length) + b"{" + b" " * size)
        assert outcome(lambda: read_adapter(path), memory=1 << 28) == "refused"


@pytest.mark.parametrize(
    ("told", "words"),
    [
        ({"trilora.config": '{"adapter": 3}'}, ""),
        ({"trilora.resize": '{"kept_energy": "all"}'}, "an unknown share of the energy"),
        ({"trilora.extract": "[1]"}, ""),
        ({"trilora.config": '{"steps": 1e999}'}, ""),
        ({"lora_adapter_metadata": '{"unet.alpha_pattern": "x", "lora_alpha": null}'}, ""),
    ],
)
def test_metadata_of_another_kind_is_passed_over(tmp_path, told, words):
    path = saved(tmp_path / "a.safetensors", **{name.replace(".", "__"): text for name, text in told.items()})
    adapter = read_adapter(path)
    assert words in table(path, adapter) and json.dumps(report(path, adapter), allow_nan=False)


@pytest.mark.parametrize("alpha", ["1" + "0" * 400, "-1e999", "NaN"])
def test_an_alpha_without_end_in_pefts_settings_is_named(tmp_path, alpha):
    stem = "unet.mid_block.attentions.0.proj_in"
    tensors = {f"{stem}.lora_{part}.weight": torch.ones(2, 2) for part in "AB"}
    save_file(tensors, tmp_path / "a.safetensors", {"lora_adapter_metadata": f'{{"unet.lora_alpha": {alpha}}}'})
    with pytest.raises(InputError, match=r"lora_alpha of .* is .*; wanted a finite number"):
        read_adapter(tmp_path / "a.safetensors")


def test_covers_are_pictures_of_ordinary_kinds_and_sizes(tmp_path):
    size = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    bomb = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + b"IHDR" + size + struct.pack(">I", zlib.crc32(b"IHDR" + size))
    postscript = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n"
    for data in (bomb, postscript, b"\x89PNG\r\n\x1a\n", b""):
        path = saved(tmp_path / "a.safetensors", ssmd_cover_images=json.dumps([b64encode(data).decode()]))
        assert outcome(lambda: table(path, read_adapter(path))) == "refused"  # noqa: B023 - called at once


def test_names_without_end_are_refused_before_they_are_searched(tmp_path):
    """The patterns that guess a model would take minutes for the first, and Python refuses the digits of the second."""
    for name in ("transformer_blocks_" * 50_000, "lora_unet_down_blocks_" + "9" * 5000 + "_attentions_0_proj_in"):
        path = tmp_path / "a.safetensors"
        save_file({f"{name}.lora_down.weight": torch.ones(2, 2), f"{name}.lora_up.weight": torch.ones(2, 2)}, path)
        with pytest.raises(InputError, match="a tensor has a name of"):
            read_adapter(path)


def retyped(dtype: str, shape: list[int] | None = None):
    def change(header, body):
        key = f"{STEM}.lora_up.weight"
        entry = header[key]
        bits = {"F4": 4, "C64": 64}.get(dtype, 8)
        entry |= {"dtype": dtype, "shape": shape or entry["shape"]}
        count = 1
        for side in entry["shape"]:
            count *= side
        at, fresh = 0, b""
        for name in [name for name in header if name != "__metadata__"]:
            start, end = header[name]["data_offsets"]
            content = bytes(count * bits // 8) if name == key else body[start:end]
            header[name]["data_offsets"] = [at, at + len(content)]
            at, fresh = at + len(content), fresh + content
        return header, fresh

    return change


def test_numbers_that_cannot_be_computed_with_are_named(tmp_path):
    for dtype in ("F4", "C64", "BOOL", "I8"):
        words = r"it holds numbers of .* in lora_unet_down"
        if dtype in ("F4", "C64"):  # safetensors before 0.6 knows neither and takes their header for a damaged one
            words += "|InvalidHeaderDeserialization"
        with pytest.raises(InputError, match=words):
            read_adapter(saved(tmp_path / "a.safetensors", change=retyped(dtype)))
    adapter = read_adapter(saved(tmp_path / "a.safetensors", change=retyped("F8_E4M3")))
    assert float(adapter.layers[STEM].svd.s.max()) == 0
    with pytest.raises(InputError, match=r"wanted \(out, r\)"):
        read_adapter(saved(tmp_path / "a.safetensors", change=retyped("F8_E5M2", [8, 2, *[1] * 80])))


# --- what a run leaves ---


def test_a_damaged_neighbour_keeps_no_run_from_starting(tmp_path):
    path = saved(tmp_path / "a_2.safetensors", trilora__fingerprint="x", trilora__finished="true", ss_steps="many")
    assert find_finished(path, "x") is None
    saved(path, trilora__fingerprint="x", trilora__finished="true", ss_steps="3", trilora__history="[" * 3000)
    assert find_finished(path, "x") is None
    path.write_bytes(b"cut off")
    assert find_finished(path, "x") is None


def test_a_damaged_state_leaves_the_run_as_it_was(tmp_path):
    first, run = make_run(), make_run()
    go(first, 3)
    path = tmp_path / "a.state"
    save_state(path, first)
    header, body = split(path.read_bytes())
    state = json.loads(header["__metadata__"]["trilora.state"])
    before = {name: tensor.clone() for name, tensor in run.state()[0].items()}
    for changes in ({"step": -1}, {"step": 1}, {"optimizer": 3}, {"bad": None}, {"ema": "x"}):
        told = header["__metadata__"] | {"trilora.state": json.dumps(state | changes)}
        path.write_bytes(joined({**header, "__metadata__": told}, body))
        if "ema" not in changes:  # not read by a run without one
            with pytest.raises(InputError, match="is damaged"):
                load_state(path, run)
        after = run.state()[0]
        assert run.step in (0, 3) and (run.step or all(torch.equal(before[name], after[name]) for name in before))
    assert not goes_on(path.with_name("none"), state["fingerprint"], 9)
    path.write_bytes(joined({**header, "__metadata__": header["__metadata__"] | {"trilora.state": "["}}, body))
    assert not goes_on(path, state["fingerprint"], 9)
    go(first, 2)


def test_a_log_with_absurd_steps_or_separators_is_read_in_bounds(tmp_path):
    path = tmp_path / "a.safetensors"
    with RunLog(path, 0) as log:
        log.write("start", 0, {"steps": 3, "time": "now\u2028later\x85"})
        log.write("step", 1, {"loss": 0.5, "learning_rate": 1e-4, "seconds": 0.1})
    good = read_log(log_path(path))
    assert good.skipped == 0 and good.start["time"] == "now\u2028later\x85"
    with log_path(path).open("a") as file:
        for line in ('{"event": "step", "step": 10000000000000000}', '{"event": "step", "step": -1}', "[" * 9999):
            file.write(line + "\n")
        file.write('{"event": "step", "step": 2, "loss": 1' + "0" * 400 + "}\n")
    record = read_log(log_path(path))
    assert record.skipped == 4 and record.losses() == [0.5]
    RunLog(path, 1).__exit__(None, None, None)
    assert len(log_path(path).read_text().split("\n")) == 3, "resumed: the start, the step, and nothing of the rest"
