"""The progress bar's run: how its errors say where the work is."""

from __future__ import annotations

import pytest

from tests.test_train import make_run
from trilora_core.cli.bar import train_with_bar
from trilora_core.errors import InputError


def train(path):
    return train_with_bar(make_run(), path, resume=False, dtype=None, metadata={}, estimate=None)


@pytest.mark.parametrize("error", [InputError("a picture was removed"), RuntimeError("CUDA error")])
def test_an_error_on_the_way_says_where_the_work_is(tmp_path, monkeypatch, capsys, error):
    def break_off(run, output, *, on_stopped, **_):
        run.step = 9
        on_stopped(output.with_name("a_stopped_at_00009.safetensors"))
        raise error

    monkeypatch.setattr("trilora_core.cli.bar.train_to_file", break_off)
    with pytest.raises(type(error)) as caught:
        train(tmp_path / "a.safetensors")
    said = f"the adapter after step 9 is {tmp_path}/a_stopped_at_00009.safetensors; the same command with --resume"
    assert str(error) in str(caught.value)
    assert said in (str(caught.value) if isinstance(error, InputError) else capsys.readouterr().err)


def test_an_error_without_any_work_is_as_it_was(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise InputError("no room")

    monkeypatch.setattr("trilora_core.cli.bar.train_to_file", refuse)
    with pytest.raises(InputError, match=r"^no room$"):
        train(tmp_path / "a.safetensors")
