"""train --calibrate: made once, kept beside the adapter, taken again, refused where it does not fit."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

from tests import cli_runs
from tests.cli_runs import few
from tests.tiny_pipeline import write_pictures
from trilora_core.__main__ import main
from trilora_core.calibration import read_calibration
from trilora_core.cli import calibration as made
from trilora_core.fileformat import read_adapter, read_metadata
from trilora_core.prompts import BROAD

pytest.importorskip("diffusers")

cache, base, pictures = cli_runs.cache, cli_runs.base, cli_runs.pictures


@pytest.fixture(scope="module")
def first(base, pictures, tmp_path_factory):
    """An adapter with its calibration beside it."""
    output = tmp_path_factory.mktemp("out") / "style.safetensors"
    assert main(few(base, pictures, output, "--init", "contrast", "--calibrate", "--prior-prompts", "a dog", "x")) == 0
    return output


def test_it_is_made_once_and_the_adapter_starts_from_it(first, base, pictures, monkeypatch, capsys):
    kept = first.with_name("style.calibration.safetensors")
    facts = read_calibration(kept).facts
    assert (facts.architecture, facts.resolution, facts.looks, facts.prior_looks) == ("sd15", 16, 64, 64)
    assert read_metadata(first)["trilora.calibration_key"] == facts.key
    before, adapter = kept.stat().st_mtime_ns, read_adapter(first)

    monkeypatch.setattr(made, "calibrate", lambda *_: pytest.fail("made again"))
    argv = few(base, pictures, first, "--init", "contrast", "--calibrate", "--prior-prompts", "a dog", "x")
    assert main(argv) == 0
    assert f"kept as {kept.resolve()}" in capsys.readouterr().out
    assert kept.stat().st_mtime_ns == before
    again = read_adapter(first)
    for stem, layer in adapter.layers.items():
        assert all(torch.equal(old, new) for old, new in zip(layer.svd, again.layers[stem].svd, strict=True)), stem


def test_a_file_of_prompts_and_the_given_calibration(first, base, pictures, tmp_path, capsys):
    """The same prompts from a file make the same calibration; given to another run, it starts that alike."""
    (tmp_path / "prompts.txt").write_text("a dog\n\n x \n", encoding="utf-8")
    output, kept = tmp_path / "b.safetensors", first.with_name("style.calibration.safetensors")
    prompts = ["--prior-prompts", str(tmp_path / "prompts.txt")]
    assert main(few(base, pictures, output, "--init", "contrast", "--calibrate", *prompts)) == 0
    one, same = load_file(kept), load_file(output.with_name("b.calibration.safetensors"))
    assert one.keys() == same.keys() and all(torch.equal(part, same[name]) for name, part in one.items())

    other = tmp_path / "c.safetensors"
    assert main(few(base, pictures, other, "--init", "contrast", "--calibration", str(kept))) == 0
    assert not other.with_name("c.calibration.safetensors").exists()
    told = [read_adapter(path) for path in (output, other)]
    for stem, layer in told[0].layers.items():
        assert all(torch.equal(a, b) for a, b in zip(layer.svd, told[1].layers[stem].svd, strict=True)), stem
    assert "from " in capsys.readouterr().out


def test_other_prompts_and_other_pictures_make_another(first, base, tmp_path, capsys):
    few_pictures = write_pictures(tmp_path / "p", captions=False)
    output, kept = tmp_path / "d.safetensors", first.with_name("style.calibration.safetensors")
    argv = few(base, few_pictures, output, "--trigger-word", "zorb", "--init", "contrast")
    assert main([*argv, "--calibration", str(kept)]) == 0
    assert "it was made with other pictures" in capsys.readouterr().out
    assert main([*argv, "--calibrate"]) == 0
    facts = read_calibration(output.with_name("d.calibration.safetensors")).facts
    assert facts.prior_looks == len(BROAD)
    assert facts.key != read_calibration(kept).facts.key


def test_what_is_held_out_is_not_looked_at(base, pictures, tmp_path):
    """The calibration is of what the run learns from, as the file says of itself."""
    output, held = tmp_path / "e.safetensors", ("--validation-share", "0.4", "--validate-every", "2")
    argv = few(base, pictures, output, "--init", "contrast", "--calibrate", "--prior-prompts", "a dog")
    assert main(argv) == 0
    whole = read_calibration(output.with_name("e.calibration.safetensors")).facts.data_hash
    assert main([*argv, *held]) == 0
    learned = read_calibration(output.with_name("e.calibration.safetensors")).facts.data_hash
    assert learned == read_metadata(output)["trilora.data_hash"] != whole


@pytest.mark.parametrize(
    ("extra", "wanted"),
    [
        (["--init", "contrast"], "needs a calibration"),
        (["--calibrate"], "--calibrate does nothing without --init contrast"),
        (["--calibration", "x"], "--calibration does nothing without --init contrast"),
        (["--init", "contrast", "--calibrate", "--calibration", "x"], "choose one"),
        (["--init", "contrast", "--calibration", "x", "--prior-prompts", "a"], "calibration.prompts does nothing"),
        (["--init", "contrast", "--calibration", "nowhere.safetensors"], "cannot read the calibration"),
        (["--init", "contrast", "--calibrate", "--prior-prompts", "EMPTY"], "has no prior prompt"),
    ],
)
def test_bad_input(extra, wanted, base, pictures, tmp_path, capsys):
    (tmp_path / "empty").write_text("\n", encoding="utf-8")
    extra = [str(tmp_path / "empty") if word == "EMPTY" else word for word in extra]
    assert main(few(base, pictures, tmp_path / "x.safetensors", *extra)) == 2
    told = capsys.readouterr().err
    assert told.startswith("error:") and wanted in told, told
    assert len(told.strip().splitlines()) == 1


def test_a_calibration_that_is_not_there_is_refused_before_the_model_is_loaded(pictures, tmp_path, capsys):
    extra = ["--init", "contrast", "--calibration", str(tmp_path / "no.safetensors")]
    assert main(few("nowhere", pictures, tmp_path / "x.safetensors", *extra)) == 2
    assert "cannot read the calibration" in capsys.readouterr().err


def test_a_damaged_one_is_made_anew(first, base, pictures, tmp_path, capsys):
    output = tmp_path / "x.safetensors"
    kept, whole = output.with_name("x.calibration.safetensors"), first.with_name("style.calibration.safetensors")
    argv = few(base, pictures, output, "--init", "contrast", "--calibrate", "--prior-prompts", "a dog", "x")
    for size in (100, -100):  # its head, and its numbers
        kept.write_bytes(whole.read_bytes()[:size])
        assert main(argv) == 0
        assert f"now, kept as {kept}" in capsys.readouterr().out
        assert read_calibration(kept).facts == read_calibration(whole).facts


def test_a_calibration_that_does_not_fit(first, base, pictures, tmp_path, capsys):
    kept = str(first.with_name("style.calibration.safetensors"))
    argv = few(base, pictures, tmp_path / "x.safetensors", "--init", "contrast", "--calibration", kept)
    for extra, wanted in (
        (["--resolution", "32"], "made at resolution 16, the data set has 32"),
        (["--layers", "attention+ff"], "lacks 16 of the layers"),
    ):
        assert main([*argv, *extra]) == 2
        assert wanted in capsys.readouterr().err


def test_an_adapter_is_no_calibration(first, base, pictures, tmp_path, capsys):
    argv = few(base, pictures, tmp_path / "x.safetensors", "--init", "contrast", "--calibration", str(first))
    assert main(argv) == 2
    assert "is no calibration" in capsys.readouterr().err
