"""The verbs that only read and write adapter files: merge and inspect."""

from __future__ import annotations

import json
from collections.abc import Mapping
from types import MappingProxyType

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from trilora_core import spectral
from trilora_core.__main__ import main
from trilora_core.fileformat import Adapter, Layer, read_adapter, tensor_hash, write_adapter
from trilora_core.merge import METHODS

STEMS = [
    f"lora_unet_{place}_attentions_0_transformer_blocks_0_attn{n}_to_{kind}"
    for place in ("down_blocks_0", "up_blocks_1")
    for n in (1, 2)
    for kind in ("q", "v")
]


def dense(layer: Layer) -> torch.Tensor:
    return layer.svd.u @ torch.diag(layer.svd.s) @ layer.svd.vh


@pytest.fixture
def make_file(tmp_path):
    def make(name: str, seed: int, rank: int = 3, metadata: Mapping[str, str] = MappingProxyType({})):
        generator = torch.Generator().manual_seed(seed)
        layers = {}
        for stem in STEMS:
            width = 768 if "attn2" in stem and stem.endswith("v") else 12  # the caption's width, which tells SD 1.5
            up, down = torch.randn(12, rank, generator=generator), torch.randn(rank, width, generator=generator)
            layers[stem] = Layer(spectral.canonical(up, down))
        path = tmp_path / f"{name}.safetensors"
        told = {"modelspec.title": name, "trilora.architecture": "sd15", **metadata}
        write_adapter(path, Adapter(layers, told), dtype=torch.float32)
        return path

    return make


def test_merge_is_the_weighted_sum(make_file, tmp_path, capsys):
    a, b, out = make_file("a", 1), make_file("b", 2), tmp_path / "out.safetensors"
    argv = ["merge", str(a), str(b), "--weights", "0.7", "-0.5", "--method", "sum", "--rank", "0"]
    assert main([*argv, "--dtype", "fp32", "--output", str(out)]) == 0
    first, second, merged = read_adapter(a), read_adapter(b), read_adapter(out)
    for stem in STEMS:
        wanted = 0.7 * dense(first.layers[stem]) - 0.5 * dense(second.layers[stem])
        assert torch.allclose(dense(merged.layers[stem]), wanted, atol=1e-4)
    text = capsys.readouterr().out
    assert f"{len(STEMS)} layers are in more than one file, 0 in one only" in text
    assert str(out.resolve()) in text


def test_merge_of_three_at_a_rank_says_what_it_kept(make_file, tmp_path, capsys):
    files = [str(make_file(name, seed)) for seed, name in enumerate("abc")]
    out = tmp_path / "out.safetensors"
    assert main(["merge", *files, "--rank", "4", "--output", str(out)]) == 0
    assert {len(layer.svd.s) for layer in read_adapter(out).layers.values()} == {4}
    assert "of the energy at rank 4" in capsys.readouterr().out


@pytest.mark.parametrize("method", [name for name in METHODS if name != "regmean"])
def test_every_method_merges_files_and_writes_a_report(make_file, tmp_path, capsys, method):
    files = [str(make_file(name, seed)) for seed, name in enumerate("ab")]
    out, told = tmp_path / "out.safetensors", tmp_path / "out.json"
    own = {"--density": "0.6"} if method in ("ties", "dare", "dare_ties", "knots", "tsv") else {}
    own |= {"--seed": "3"} if method.startswith("dare") else {}
    argv = ["merge", *files, "--method", method, "--report", str(told), "--output", str(out)]
    assert main([*argv, *(word for pair in own.items() for word in pair)]) == 0
    record = json.loads(told.read_text(encoding="utf-8"))
    assert record["method"] == method and set(record["layers"]) == set(STEMS)
    assert record["pairs"][0]["layers"] == len(STEMS)
    kept = json.loads(read_adapter(out).metadata["trilora.merge"])
    wanted = (method, float(own.get("--density", 0.5)), int(own.get("--seed", 0)))
    assert (kept["method"], kept["density"], kept["seed"]) == wanted
    assert "a and b overlap: write" in capsys.readouterr().out


def test_merge_with_an_energy_cut(make_file, tmp_path):
    files = [str(make_file(name, seed)) for seed, name in enumerate("ab")]
    out = tmp_path / "out.safetensors"
    assert main(["merge", *files, "--keep-energy", "0.7", "--output", str(out)]) == 0
    assert max(len(layer.svd.s) for layer in read_adapter(out).layers.values()) < 6


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--weights", "1"], "2 files and 1 weights; give one weight for each file"),
        (["--weights", "1", "nan"], "wanted finite numbers"),
        (["--method", "tsv", "--density", "0"], "density is 0.0; wanted"),
        (["--keep-energy", "2"], "keep_energy is 2.0; wanted a finite number above 0 and at most 1"),
        (["--density", "0.5"], "leave it out, or take ties, dare, dare_ties, knots or tsv"),
        (["--method", "orthogonal", "--density", "0"], "--density does nothing with --method orthogonal"),
        (["--method", "ties", "--seed", "0"], "--seed does nothing with --method ties; leave it out, or take dare or"),
        (["--prior-weight", "0"], "--prior-weight does nothing with --method sum; leave it out, or take regmean"),
        (["--method", "concatenate", "--rank", "4"], "take sum to cut"),
        (["--method", "regmean"], "a.calibration.safetensors is not there; name them with --calibrations"),
        (["--report", "out.txt"], "does not end in .json"),
        (["--rank", "-1"], "rank is -1; wanted a whole number from 0 up"),
    ],
)
def test_merge_refuses(make_file, tmp_path, capsys, extra, message):
    out = tmp_path / "out.safetensors"
    assert main(["merge", str(make_file("a", 1)), str(make_file("b", 2)), *extra, "--output", str(out)]) == 2
    assert message in capsys.readouterr().err
    assert not out.exists()


def test_the_output_must_be_a_safetensors_file(make_file, tmp_path, capsys):
    assert main(["merge", str(make_file("a", 1)), "--output", str(tmp_path / "out.ckpt")]) == 2
    assert "does not end in .safetensors; name the file out.safetensors" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (".", ". is a folder; give the name of a file in it, such as result.safetensors"),
        ("", ". is a folder"),
        ("/", "/ is a folder"),
        (f"{'x' * 189}.safetensors", "has 201 bytes; wanted at most 200: choose a shorter one"),
        ("a\udcff.safetensors", r"the path a\udcff.safetensors is not UTF-8"),
        (f"{'x' * 300}/out.safetensors", "File name too long"),
    ],
)
def test_an_output_that_no_file_can_have_is_refused_before_the_work(make_file, capsys, name, message):
    """What it would come from is not even looked for."""
    for argv in (["resize", "missing", "--rank", "1"], ["extract", "missing", "missing"], ["merge", "missing"]):
        assert main([*argv, "--output", name]) == 2
        error = capsys.readouterr().err
        assert message in error and error.startswith("error: ") and error.count("\n") == 1


def test_a_folder_that_cannot_be_made_is_named(make_file, tmp_path, capsys):
    (tmp_path / "file").write_text("in the way", encoding="utf-8")
    assert main(["merge", str(make_file("a", 1)), "--output", str(tmp_path / "file" / "out.safetensors")]) == 2
    assert f"cannot write to {tmp_path / 'file'}: it is a file; choose a folder" in capsys.readouterr().err


def test_inspect_shows_what_a_person_asks(make_file, capsys):
    told = {"modelspec.trigger_phrase": "zorblin style", "trilora.base_name": "small base"}
    path = make_file("style", 1, metadata=told)
    assert main(["inspect", str(path)]) == 0
    text = capsys.readouterr().out
    for wanted in ("sd15", "small base", "rank 3", "in 8 layers", "zorblin style", "down 0", "up 1", "energy"):
        assert wanted in text, wanted


@pytest.mark.parametrize(
    ("told", "words"),
    [
        ({"trilora.finished": "true"}, "3, batch"),
        ({"trilora.finished": "true", "trilora.ended": "validation"}, "3 of 9 (validation was no better)"),
        ({"trilora.finished": "false", "trilora.ended": "interrupt"}, "3 of 9 (stopped early)"),
        ({"trilora.finished": "false", "trilora.kept": "best"}, "3 of 9 (the best by validation)"),
        ({"trilora.finished": "false", "trilora.kept": "step"}, "3 of 9 (kept on the way)"),
    ],
)
def test_inspect_says_why_there_are_fewer_steps(make_file, capsys, told, words):
    path = make_file("style", 1, metadata={"ss_steps": "3", "ss_max_train_steps": "9", **told})
    assert main(["inspect", str(path)]) == 0
    assert words in capsys.readouterr().out


def test_inspect_lists_every_layer_when_asked(make_file, capsys):
    assert main(["inspect", str(make_file("style", 1)), "--layers"]) == 0
    assert "down 0.0 block 0 attn1 q" in capsys.readouterr().out


def test_inspect_as_json_holds_the_singular_values(make_file, capsys):
    path = make_file("style", 1)
    assert main(["inspect", str(path), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["layer_count"] == len(STEMS)
    found = torch.tensor(told["layers"][STEMS[0]]["singular_values"])
    assert torch.allclose(found, read_adapter(path).layers[STEMS[0]].svd.s)
    assert told["energy"] == pytest.approx(sum(layer["energy"] for layer in told["layers"].values()))


def test_inspect_reads_a_foreign_lora(tmp_path, capsys):
    path = tmp_path / "foreign.safetensors"
    stem = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
    save_file({f"{stem}.lora_down.weight": torch.eye(2, 8), f"{stem}.lora_up.weight": torch.eye(8, 2)}, path)
    assert main(["inspect", str(path)]) == 0
    assert "rank 2" in capsys.readouterr().out


def test_inspect_draws_the_spectrum(make_file, tmp_path, capsys):
    picture = tmp_path / "spectrum.png"
    assert main(["inspect", str(make_file("style", 1)), "--plot", str(picture)]) == 0
    with Image.open(picture) as drawn:
        assert drawn.width > 600
    assert str(picture.resolve()) in capsys.readouterr().out


def test_a_truncated_file_is_named(make_file, capsys):
    path = make_file("style", 1)
    path.write_bytes(path.read_bytes()[:-100])
    assert main(["inspect", str(path)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and str(path) in error


def test_a_pickle_is_never_opened(tmp_path, capsys):
    path = tmp_path / "style.safetensors"
    torch.save({"a": torch.zeros(2)}, path)
    assert main(["inspect", str(path)]) == 2
    assert "pickle" in capsys.readouterr().err


def test_resize_by_rank_and_by_energy(make_file, tmp_path, capsys):
    source, out = make_file("a", 1, rank=6), tmp_path / "small.safetensors"
    assert main(["resize", str(source), "--rank", "2", "--output", str(out)]) == 0
    assert {len(layer.svd.s) for layer in read_adapter(out).layers.values()} == {2}
    assert "rank 6 to rank 2 in 8 layers" in capsys.readouterr().out
    assert main(["resize", str(source), "--energy", "0.6", "--rank", "3", "--output", str(out)]) == 0
    before, after = read_adapter(source), read_adapter(out)
    for stem, layer in before.layers.items():
        held = layer.svd.s.square().cumsum(0) / layer.svd.s.square().sum()
        assert len(after.layers[stem].svd.s) == min(3, int((held < 0.6).sum()) + 1)
    for wrong, message in ((["--rank", "0"], "rank is 0"), (["--energy", "2"], "energy is 2"), ([], "--energy 0.95")):
        assert main(["resize", str(source), *wrong, "--output", str(out)]) == 2
        assert message in capsys.readouterr().err


def test_convert_keeps_the_number_format(make_file, tmp_path, capsys):
    source, peft, back = make_file("a", 1), tmp_path / "peft.safetensors", tmp_path / "back.safetensors"
    assert main(["convert", str(source), "--to", "peft", "--output", str(peft)]) == 0
    assert "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q" in capsys.readouterr().out
    assert main(["convert", str(peft), "--to", "kohya", "--output", str(back)]) == 0
    head, tail = source.read_bytes(), back.read_bytes()
    assert head[8 + int.from_bytes(head[:8], "little") :] == tail[8 + int.from_bytes(tail[:8], "little") :]


def test_inspect_compares_several_and_tells_what_was_done(make_file, tmp_path, capsys):
    a, b, small = make_file("a", 1), make_file("b", 2), tmp_path / "small.safetensors"
    main(["resize", str(a), "--rank", "1", "--output", str(small)])
    capsys.readouterr()
    picture = tmp_path / "both.png"
    assert main(["inspect", str(a), str(b), str(small), "--plot", str(picture)]) == 0
    out = capsys.readouterr().out
    assert "a and b: " in out and "of what they write overlaps" in out
    assert "of the energy kept" in out and f"{tensor_hash(small)}" in out
    with Image.open(picture) as drawn:
        assert drawn.width == 1800
    assert main(["inspect", str(a), str(b), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [entry["sha256"] for entry in told["files"]] == [tensor_hash(a), tensor_hash(b)] and len(
        told["overlap"]
    ) == 1


def test_inspect_says_when_tensors_were_changed_behind_the_metadata(make_file, capsys):
    file = make_file("a", 1)
    data = bytearray(file.read_bytes())
    data[-2] ^= 1
    file.write_bytes(bytes(data))
    assert main(["inspect", str(file)]) == 0
    assert "the tensors were changed since" in capsys.readouterr().out
