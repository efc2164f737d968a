from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tests.adapters import dense
from tests.test_ema import AVERAGES, WITH_EMA, averaging
from tests.test_session import keep, lines, stop_at
from tests.test_train import CONFIG, go, make_run, same, values
from trilora_core.config import MonitorConfig
from trilora_core.milestones import Listeners
from trilora_core.spectrum import look_at_spectrum


def watched(config=CONFIG, every=15):
    return make_run(replace(config, monitor=MonitorConfig(spectrum_every=every)))


def test_a_look_sees_the_dense_singular_values():
    run = make_run(replace(CONFIG, adapter=replace(CONFIG.adapter, companion_rank=1, alpha=2.0)))
    go(run, 20)
    seen = look_at_spectrum(run)
    layers = run.trainable.canonical()
    assert seen.step == 20 and seen.layers.keys() == layers.keys()
    squares, ranks = 0.0, []
    for stem, layer in layers.items():
        exact = torch.linalg.svdvals(dense(layer))
        found = torch.tensor(seen.layers[stem].values, dtype=torch.float64)
        assert len(found) == 5 and torch.allclose(found, exact[:5], rtol=1e-4, atol=1e-6 * exact[0])
        share = exact[:5] / exact[:5].sum()
        ranks.append(float(torch.exp(-(share * share.log()).sum())))
        assert seen.layers[stem].effective_rank == pytest.approx(ranks[-1], rel=1e-4)
        assert seen.layers[stem].norm == pytest.approx(float(exact.norm()), rel=1e-5)
        squares += float(exact.square().sum())
    assert seen.effective_rank == pytest.approx(sum(ranks) / len(ranks), rel=1e-4)
    assert seen.norm == pytest.approx(squares**0.5, rel=1e-5)


def test_layers_of_unlike_rank_are_seen_together():
    """A row range has other shapes, and an energy rank gives each layer its own number of values."""
    run = make_run(replace(CONFIG, adapter=replace(CONFIG.adapter, rank="energy:0.6")))
    go(run, 3)
    seen, layers = look_at_spectrum(run), run.trainable.canonical()
    assert len({len(layer.values) for layer in seen.layers.values()}) > 1
    for stem, layer in layers.items():
        assert torch.allclose(torch.tensor(seen.layers[stem].values), layer.svd.s, rtol=1e-5, atol=1e-9)


def test_an_adapter_that_has_learned_nothing_has_no_spectrum():
    seen = look_at_spectrum(make_run())
    assert (seen.effective_rank, seen.norm) == (0.0, 0.0)
    assert all(layer.values == (0.0,) * 4 for layer in seen.layers.values())


@AVERAGES
def test_what_would_be_saved_is_seen(config):
    averaging(config)
    run = make_run(config)
    go(run, 12)
    before = values(run)
    saved = {stem: layer.svd.s for stem, layer in run.adapter().layers.items()}
    now = {stem: layer.svd.s for stem, layer in run.trainable.canonical().items()}
    for stem, layer in look_at_spectrum(run).layers.items():
        found = torch.tensor(layer.values)
        assert torch.allclose(found, saved[stem], rtol=1e-5, atol=1e-9) and not torch.allclose(found, now[stem])
    assert same(before, values(run))


@pytest.mark.parametrize("config", [CONFIG, WITH_EMA], ids=["plain", "ema"])
def test_looking_changes_nothing_and_everyone_hears(tmp_path, config):
    plain, run, heard = make_run(config), watched(config), []
    keep(plain, tmp_path / "plain.safetensors")
    path = tmp_path / "a.safetensors"
    keep(run, path, listeners=Listeners(on_spectrum=heard.append))
    assert same(values(plain), values(run)) and plain.losses == run.losses
    assert run.fingerprint() == plain.fingerprint()
    assert [spectrum.step for spectrum in heard] == [0, 15, 30, 40]
    logged = lines(path, "spectrum")
    assert [line["step"] for line in logged] == [0, 15, 30, 40]
    for line, spectrum in zip(logged, heard, strict=True):
        assert line["norm"] == pytest.approx(spectrum.norm, rel=1e-4)
        assert line["effective_rank"] == pytest.approx(spectrum.effective_rank, rel=1e-4)
        for stem, layer in spectrum.layers.items():
            told = line["layers"][stem]
            assert told["values"] == pytest.approx(layer.values, rel=1e-4)
            assert told["effective_rank"] == pytest.approx(layer.effective_rank, rel=1e-4)
            assert told["norm"] == pytest.approx(layer.norm, rel=1e-4)


def test_a_resumed_run_tells_each_look_once(tmp_path):
    path = tmp_path / "a.safetensors"
    for stop in (15, 22):
        with pytest.raises(KeyboardInterrupt):
            keep(watched(), path, stop_at(stop), resume=True)
    whole = tmp_path / "whole.safetensors"
    keep(watched(), path, resume=True)
    keep(watched(), whole)
    assert lines(path, "spectrum") == lines(whole, "spectrum")


def test_values_that_are_not_finite_are_a_problem_and_no_end(tmp_path, monkeypatch):
    run, problems = watched(every=2), []

    def break_it():
        if run.step == 1:  # of the second step, which makes it so
            with torch.no_grad():
                next(iter(run.trainable.branches.values())).up.fill_(float("inf"))

    monkeypatch.setattr(run.scaler, "update", break_it)
    keep(
        run,
        tmp_path / "a.safetensors",
        lambda step: step.step == 3 and run.request_stop(),  # the third one takes it back
        listeners=Listeners(on_problem=problems.append),
    )
    assert problems and problems[0].startswith("no spectrum at step 2: layer lora_unet_blocks_0_to_q: ")
    assert "problem" in lines(tmp_path / "a.safetensors", "spectrum")[-1]
