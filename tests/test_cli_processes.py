"""Training in two processes that `accelerate launch` starts on the CPU (gloo): what one process learns, and one end."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
import safetensors
import torch
from PIL import Image
from safetensors.torch import save_file

from tests import cli_runs, crew_worker
from tests.tiny_pipeline import SIDE
from trilora_core.__main__ import main
from trilora_core.checkpoint import state_path
from trilora_core.cli.processes import Processes, join, launched_precision
from trilora_core.cli.scale import Begun, begun, whole_batch
from trilora_core.config import TrainConfig
from trilora_core.crew import share_of
from trilora_core.errors import InputError
from trilora_core.fileformat import read_adapter, read_metadata
from trilora_core.keys import is_text
from trilora_core.runlog import log_path

ROOT = Path(__file__).resolve().parents[1]
cache, base = cli_runs.cache, cli_runs.base


def free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def launch(*words: str) -> subprocess.Popen[str]:
    """Two processes on the CPU. accelerate's own --cpu starts one; without a GPU --multi_gpu starts them on gloo."""
    how = ["--multi_gpu", "--num_processes", "2", "--num_machines", "1", "--main_process_port", free_port()]
    how += ["--mixed_precision", "no", "--dynamo_backend", "no"]
    argv = [sys.executable, "-m", "accelerate.commands.launch", *how, *words]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "ACCELERATE_LOG_LEVEL": "error"}
    return subprocess.Popen(argv, cwd=ROOT, env=environment, stdout=-1, stderr=-1, text=True)


def ended(process: subprocess.Popen[str], seconds: float = 500) -> subprocess.CompletedProcess[str]:
    try:
        out, error = process.communicate(timeout=seconds)
    finally:
        process.kill()
    return subprocess.CompletedProcess(process.args, process.returncode, out, error)


def distance(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    """‖ΔW - ΔW'‖ / ‖ΔW‖ over all layers."""
    assert one.keys() == other.keys()
    apart = sum(float((one[stem] - other[stem]).double().square().sum()) for stem in one)
    return (apart / sum(float(value.double().square().sum()) for value in one.values())) ** 0.5


# --- the toy in float64 -----------------------------------------------------------


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """What both processes made of every case of tests/crew_worker.py, and the folder with their files."""
    folder = tmp_path_factory.mktemp("two")
    done = ended(launch(str(ROOT / "tests" / "crew_worker.py"), str(folder)))
    assert done.returncode == 0, done.stderr
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)], folder


@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", ["accumulated", "uneven", "text", "kept", "patient"])
def test_two_processes_learn_what_one_learns_with_the_whole_batch(two, tmp_path, name):
    """Buckets, accumulation, prior, kept points, text encoders, shares of unlike size, an early end by validation."""
    found, folder = two
    first, second = (results[name] for results in found)
    assert all(torch.equal(value, second["values"][key]) for key, value in first["values"].items())
    one = crew_worker.go(name, tmp_path, Processes())
    assert distance(one["delta"], first["delta"]) < 1e-10  # wanted: 1e-5
    assert first["losses"] == second["losses"] == pytest.approx(one["losses"], rel=1e-6)
    assert first["step"] == second["step"] == one["step"] and first["ended"] == one["ended"]
    assert (name == "patient") == (one["ended"] == "validation")
    logs = [
        [json.loads(line) for line in log_path(place / f"{name}.safetensors").open()] for place in (folder, tmp_path)
    ]
    measures = [[(e["validation"], e["drift"]) for e in log if e["event"] == "measure"] for log in logs]
    assert bool(measures[1]) == bool(crew_worker.CASES[name].config.monitor.validation_share)
    assert len(measures[0]) == len(measures[1])
    for mine, theirs in zip(*measures, strict=True):
        assert mine == pytest.approx(theirs, rel=1e-5)


def test_all_end_alike_where_one_diverges_or_is_stopped_and_one_goes_on_alone(two, tmp_path):
    found, folder = two
    for results in found:
        assert (results["diverged"]["ended"], results["diverged"]["step"]) == ("TrainingDiverged", 6)
        assert results["stopped"]["ended"] == "KeyboardInterrupt" and results["stopped"]["step"] == 4
    whole = crew_worker.go("stopped", tmp_path, Processes())
    for path in folder.glob("stopped*"):
        shutil.copy(path, tmp_path)
    rest = crew_worker.go("stopped", tmp_path, Processes(), resume=True)
    assert distance(whole["delta"], rest["delta"]) < 1e-10
    assert rest["losses"] == pytest.approx(whole["losses"], rel=1e-6)


def test_they_wait_for_the_first_and_refuse_together(two):
    found, _ = two
    assert found[0]["waits"] == ["made by 0", "refused by 0", "process 1: refused by 1", "0"]
    assert found[1]["waits"] == ["made by 0", "told", "told", "0"]


# --- the verb -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Nine pictures of three shapes."""
    folder, chance = tmp_path_factory.mktemp("data") / "pictures", random.Random(0)
    folder.mkdir()
    sizes = [(SIDE, SIDE)] * 4 + [(2 * SIDE, SIDE)] * 3 + [(SIDE, 2 * SIDE)] * 2
    for number, size in enumerate(sizes):
        image = Image.frombytes("RGB", size, chance.randbytes(3 * size[0] * size[1]))
        image.save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(f"a {('red', 'green', 'blue')[number % 3]} square", encoding="utf-8")
    return folder


STEPS, EVERY = 12, 3


def words(base: Path, pictures: Path, output: Path, *extra: str) -> list[str]:
    argv = ["train", "--model", str(base), "--data", str(pictures), "--output", str(output), "--rank", "2"]
    argv += ["--steps", str(STEPS), "--lr", "0.01", "--resolution", "32", "--dtype", "fp32", "--device", "cpu"]
    argv += ["--text-encoder-rate", "0.5", "--validation-share", "0.2", "--validate-every", "8"]
    argv += ["--prior-prompt", "a red house", "--prior-count", "1"]
    return [*argv, "--save-every", str(EVERY), *extra]


def child_of_rank(process: subprocess.Popen[str], rank: int) -> int:
    """The process number of one of the two that `accelerate launch` has started."""
    for place in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((place / "stat").read_text().rpartition(")")[2].split()[1])
            if parent == process.pid and f"RANK={rank}" in (place / "environ").read_text().split("\0"):
                return int(place.name)
        except (OSError, ValueError):  # it has just ended
            continue
    raise AssertionError(f"no process of rank {rank}")


def steps_of(output: Path) -> list[dict]:
    lines = [json.loads(line) for line in log_path(output).read_text().splitlines()]
    return [line for line in lines if line["event"] == "step"]


def deltas(path: Path) -> dict[str, torch.Tensor]:
    found = {stem: layer.svd for stem, layer in read_adapter(path).layers.items()}
    return {stem: (u * s) @ v for stem, (u, s, v) in found.items()}


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="processes are found in /proc")
@pytest.mark.timeout(900)
def test_a_killed_process_ends_the_run_and_one_or_two_go_on_with_it(base, pictures, tmp_path, capsys):
    whole, output = tmp_path / "whole" / "style.safetensors", tmp_path / "two" / "style.safetensors"
    both = ["-m", "trilora_core"]
    process = launch(*both, *words(base, pictures, output))
    started = time.monotonic()
    while not state_path(output).exists():
        assert process.poll() is None and time.monotonic() - started < 240, ended(process).stderr
        time.sleep(0.02)
    os.kill(child_of_rank(process, 1), signal.SIGKILL)
    killed = time.monotonic()
    done = ended(process, 150)
    took = time.monotonic() - killed
    assert done.returncode != 0 and took < 150
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and "process 0 of 2 (counted from 0) lost the others" in errors[0], done.stderr
    assert (
        "--resume goes on" in errors[0] and "Traceback (most recent call last)" not in done.stderr.split(errors[0])[0]
    )
    with safetensors.safe_open(state_path(output), framework="pt") as file:
        step = json.loads(file.metadata()["trilora.state"])["step"]
    assert EVERY <= step < STEPS and begun(output) == Begun(2, 2)
    print(f"killed; the other ended {took:.1f} s later, after step {step} of {STEPS}")

    assert main(words(base, pictures, whole, "--batch-size", "2")) == 0
    alone = tmp_path / "alone" / "style.safetensors"
    shutil.copytree(output.parent, alone.parent)
    again = launch(*both, *words(base, pictures, output, "--resume"))
    capsys.readouterr()
    assert main(words(base, pictures, alone, "--resume")) == 0  # the same words, and the batch of two
    assert "batch 2, at most 1 in a forward" in capsys.readouterr().out
    done = ended(again)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("batch 2 shared by 2 processes") == 1 and done.stdout.count("\nlog: ") == 1
    for path in (output, alone):
        assert distance(deltas(whole), deltas(path)) < 1e-5  # wanted: 2e-3
        assert [s["loss"] for s in steps_of(path)] == pytest.approx([s["loss"] for s in steps_of(whole)], rel=1e-5)
        assert read_metadata(path)["trilora.fingerprint"] == read_metadata(whole)["trilora.fingerprint"]
    assert any(is_text(stem) for stem in deltas(output))
    told = read_metadata(output)
    assert (told["ss_total_batch_size"], told["trilora.processes"]) == ("2", "2")
    assert {path.name for path in output.parent.iterdir()} == {
        "style.safetensors",
        "style.log.jsonl",
        "style.toml",
        "style_prior",
        f"style_stopped_at_{step:05d}.safetensors",
    }


# --- without starting any -------------------------------------------------------------


class Seat:
    def __init__(self, rank: int, size: int) -> None:
        self.rank, self.size = rank, size


@pytest.mark.parametrize(("count", "size"), [(2, 2), (7, 2), (5, 3), (2, 3), (0, 2)])
def test_shares_cover_everything_once_and_differ_by_one_at_most(count, size):
    shares = [share_of(count, Seat(rank, size)) for rank in range(size)]
    assert [number for share in shares for number in share] == list(range(count))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_every_look_belongs_to_one_process_whatever_lies_beside_it():
    """Also where an update has an odd number of looks: the prior and the kept points are split, not doubled."""
    case = crew_worker.CASES["kept"]
    alone = crew_worker.make(case, Seat(0, 1))[0]
    shared = [crew_worker.make(case, Seat(rank, 2))[0] for rank in range(2)]
    for batch in range(6):
        whole = [row.noise for row in alone.rows(batch)]
        parts = [row.noise for run in shared for row in run.rows(batch)]
        assert len(whole) == len(parts) and all(torch.equal(a, b) for a, b in zip(whole, parts, strict=True))
        assert Counter(alone.shapes(batch)) == Counter(shape for run in shared for shape in run.shapes(batch))


@pytest.mark.parametrize(
    ("each", "total", "processes", "found", "wanted"),
    [
        (3, 0, 1, None, (3, 0)),
        (3, 0, 2, None, (6, 0)),
        (1, 5, 2, None, (5, 0)),
        (2, 0, 1, Begun(6, 3), (6, 2)),  # the same words: the batch of the three, in pieces of 2
        (6, 0, 1, Begun(6, 3), (6, 0)),
        (2, 0, 4, Begun(6, 3), (6, 0)),
        (4, 0, 1, Begun(6, 3), (4, 0)),  # other words: another run, which resume refuses
    ],
)
def test_the_batch_is_for_each_process_and_stays_that_of_a_run(each, total, processes, found, wanted):
    config, at_once = whole_batch(TrainConfig(batch_size=each), total, processes, found)
    assert (config.batch_size, at_once) == wanted


@pytest.mark.parametrize("state", ["[]", '{"config": 3}', '{"config": "{}"}', '{"config": "{\\"batch_size\\": null}"}'])
def test_a_state_that_says_nothing_of_a_batch_is_none(tmp_path, state):
    output = tmp_path / "a.safetensors"
    save_file({}, state_path(output), {"trilora.state": state})
    assert begun(output) is None


def test_a_batch_that_leaves_a_process_idle_is_refused():
    with pytest.raises(InputError, match="the batch of 2 cannot be shared by 3 processes"):
        whole_batch(TrainConfig(), 2, 3)


def test_accelerates_precision_is_taken_or_refused():
    def launched(precision: str, found: str) -> str:
        return launched_precision(TrainConfig(precision=precision), {"ACCELERATE_MIXED_PRECISION": found}).precision

    assert launched("auto", "bf16") == launched("bf16", "bf16") == launched("bf16", "no") == "bf16"
    assert launched_precision(TrainConfig(), {}).precision == "auto"
    with pytest.raises(InputError, match="mixed precision bf16, but precision is fp16"):
        launched("fp16", "bf16")
    with pytest.raises(InputError, match="mixed precision fp8; wanted no, bf16 or fp16"):
        launched("auto", "fp8")


def test_one_process_is_alone(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "")  # as good as unset
    with join("cuda:1") as crew:
        assert (crew.rank, crew.size, crew.leads, crew.device("cuda:1"), crew.metadata()) == (0, 1, True, "cuda:1", {})
        assert crew.first(lambda: crew.of_first(3)) == 3
