from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

from tests.test_train import CONFIG, go, make_run, same, values
from trilora_core.checkpoint import goes_on, load_state, remove_leftovers, remove_state, save_state, state_path
from trilora_core.config import MonitorConfig
from trilora_core.errors import InputError


def test_a_state_file_resumes_bit_for_bit(tmp_path):
    whole, first, resumed = make_run(), make_run(), make_run()
    go(whole)
    go(first, 11)
    save_state(tmp_path / "a.state", first)
    load_state(tmp_path / "a.state", resumed)
    go(resumed)
    assert same(values(whole), values(resumed)) and whole.losses == resumed.losses


def test_the_state_lies_beside_the_adapter(tmp_path):
    assert state_path(tmp_path / "style.safetensors") == tmp_path / "style.state"


def test_a_state_of_other_options_is_refused(tmp_path):
    run = make_run()
    go(run, 2)
    save_state(tmp_path / "a", run)
    other = make_run(replace(CONFIG, batch_size=2))
    with pytest.raises(InputError, match="belongs to a run with other options"):
        load_state(tmp_path / "a", other)
    longer = make_run(replace(CONFIG, steps=60))
    load_state(tmp_path / "a", longer)
    assert longer.step == 2


def test_foreign_and_broken_files_are_refused(tmp_path):
    save_file({"x": torch.zeros(1)}, tmp_path / "other")
    with pytest.raises(InputError, match="has state version none, wanted 3"):
        load_state(tmp_path / "other", make_run())
    (tmp_path / "broken").write_bytes(b"\x08\0\0\0\0\0\0\0{")
    with pytest.raises(InputError, match="cannot resume from"):
        load_state(tmp_path / "broken", make_run())
    with pytest.raises(InputError, match="cannot resume from"):
        load_state(tmp_path / "missing", make_run())


def test_only_a_state_of_the_same_run_with_steps_left_goes_on(tmp_path):
    run = make_run()
    go(run, 3)
    save_state(tmp_path / "a", run)
    mark = run.fingerprint(with_steps=False)
    assert goes_on(tmp_path / "a", mark, 4)
    assert not goes_on(tmp_path / "a", mark, 3)
    assert not goes_on(tmp_path / "a", make_run(replace(CONFIG, seed=8)).fingerprint(with_steps=False), 4)
    save_file({"x": torch.zeros(1)}, tmp_path / "other")
    (tmp_path / "broken").write_bytes(b"\x08\0\0\0\0\0\0\0{")
    assert not any(goes_on(tmp_path / name, mark, 4) for name in ("other", "broken", "missing"))


def test_removing_a_state_twice_is_no_error(tmp_path):
    run = make_run()
    go(run, 1)
    save_state(tmp_path / "a", run)
    remove_state(tmp_path / "a")
    remove_state(tmp_path / "a")
    assert not list(tmp_path.iterdir())


def test_what_lies_beside_the_state_comes_back(tmp_path):
    run = make_run()
    go(run, 1)
    save_state(tmp_path / "a", run, {"measures": [[1, 0.5, None]]})
    assert load_state(tmp_path / "a", make_run()) == {"measures": [[1, 0.5, None]]}
    save_state(tmp_path / "a", run)
    assert load_state(tmp_path / "a", make_run()) == {}


def test_a_refused_state_leaves_the_run_as_it_was(tmp_path):
    run, other = make_run(), make_run(replace(CONFIG, seed=8))
    go(run, 2)
    save_state(tmp_path / "a", run)
    before = values(other)
    with pytest.raises(InputError):
        load_state(tmp_path / "a", other)
    assert other.step == 0 and same(before, values(other))


def test_a_run_may_be_watched_otherwise_when_it_goes_on(tmp_path):
    run = make_run()
    go(run, 2)
    save_state(tmp_path / "a", run)
    watched = make_run(replace(CONFIG, save_every=3, monitor=MonitorConfig(preview_every=2, preview_prompts=("a",))))
    load_state(tmp_path / "a", watched)
    assert watched.step == 2


def test_leftovers_of_a_killed_run_are_removed_and_nothing_else(tmp_path):
    output = tmp_path / "sty[l]e.safetensors"
    previews = tmp_path / "sty[l]e_previews"
    previews.mkdir()
    kinds = ("", "_best", "_step_00003", "_stopped_at_00004")
    mine = [tmp_path / f".sty[l]e{kind}.safetensors.x2.part" for kind in kinds]
    mine += [tmp_path / name for name in (".sty[l]e.state.x1.part", ".sty[l]e.log.jsonl.x3.part")]
    mine.append(previews / ".step_00003_0.png.x.part")
    others = [tmp_path / ".style.state.x1.part", tmp_path / ".sty[l]e_2.state.x.part", tmp_path / "sty[l]e.state"]
    for path in (*mine, *others):
        path.touch()
    remove_leftovers(output)
    assert sorted(tmp_path.iterdir()) == sorted([*others, previews]) and not list(previews.iterdir())
