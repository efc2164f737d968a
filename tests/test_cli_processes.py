"""Training in two processes on the CPU (gloo): same adapter in both, gradients averaged, one file."""

from __future__ import annotations

import dataclasses
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.tiny_pipeline import write_pictures, write_pipeline
from tests.toy import ToyDenoiser, ToyTextEncoder, toy_dataset, with_texts
from trilora_core.__main__ import main
from trilora_core.adapter import TriLoRA
from trilora_core.cli.processes import Crew
from trilora_core.config import AdapterConfig, OptimizerConfig, TrainConfig
from trilora_core.errors import InputError
from trilora_core.fileformat import read_adapter, read_metadata
from trilora_core.keys import is_text
from trilora_core.optim import set_rate
from trilora_core.train import Run, targets_of

ROOT = Path(__file__).resolve().parents[1]

# What each of two processes does: a step on its share of the toy data. The gradients that it stepped with and the whole
# adapter are for the test to compare.
WORKER = """
import sys
import torch
sys.path.insert(0, ".")
from tests.test_cli_processes import toy_run
from trilora_core.cli.processes import averaged_gradients, follow, join
torch.set_num_threads(1)
with join("cpu") as crew:
    run = toy_run(crew)
    named, kept = dict(run.trainable.named_parameters()), {}
    run.optimizer.register_step_pre_hook(
        lambda *_: kept.update({f"{name}.grad": value.grad.clone() for name, value in named.items()})
    )
    with averaged_gradients(run, crew):
        follow(run)
    torch.save(kept | {name: value.detach() for name, value in named.items()}, f"{sys.argv[1]}/{crew.rank}.pt")
"""

# The first process takes its time to make a file, which both read, and then refuses something.
WAITER = """
import sys, time
from pathlib import Path
sys.path.insert(0, ".")
from trilora_core.cli.processes import join
from trilora_core.errors import InputError
with join("cpu") as crew:
    def make():
        if crew.leads:
            time.sleep(1)
            Path(sys.argv[1]).write_text("made by 0")
        return Path(sys.argv[1]).read_text()
    print(crew.first(make))
    def refuse():
        raise InputError(f"refused by {crew.rank}")
    try:
        crew.first(refuse)
    except InputError as error:
        print(error)
"""


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    """No test may write into the user's own cache."""
    monkeypatch.setenv("TRILORA_CACHE", str(tmp_path / "cache"))


def toy_run(crew: Crew) -> Run:
    """Text encoder and checkpointing included; the second process has pictures of unlike shapes in its batch."""
    optimizer = OptimizerConfig(text_encoder_rate=0.5, clip_norm=0.0)
    config = TrainConfig(
        steps=1, batch_size=2, gradient_checkpointing=True, adapter=AdapterConfig(rank=2), optimizer=optimizer
    )
    dataset = with_texts(toy_dataset(4, sizes=((4, 4), (4, 4), (4, 4), (2, 6))), ToyTextEncoder())
    denoiser, text = ToyDenoiser(), ToyTextEncoder()
    targets = targets_of(config, denoiser, text)
    adapter = TriLoRA.create(targets, config.adapter, seed=0, data_hash=dataset.content_hash)
    with torch.no_grad():
        for index, branch in enumerate(adapter.branches.values()):
            branch.up.normal_(std=0.1, generator=torch.Generator().manual_seed(index))
    return Run(crew.config(config, dataset), denoiser, crew.share(dataset), adapter, text=text)


def gradients(crew: Crew) -> dict[str, torch.Tensor]:
    """Of the first step of one process, before anything is averaged, clipped or applied."""
    run = toy_run(crew)
    with run.trainable.attach(run.targets()):
        run._backward(0)
    return {name: value.grad for name, value in run.trainable.named_parameters()}


def expected() -> dict[str, torch.Tensor]:
    """One step by hand with the mean of both processes' gradients."""
    first, second = (gradients(Crew(rank, 2)) for rank in range(2))
    assert any(not torch.equal(first[name], second[name]) for name in first)
    run = toy_run(Crew())
    for name, parameter in run.trainable.named_parameters():
        parameter.grad = (first[name] + second[name]) / 2
    set_rate(run.optimizer, run.config.optimizer.learning_rate)
    run.optimizer.step()
    named = dict(run.trainable.named_parameters())
    return {f"{name}.grad": value.grad for name, value in named.items()} | {n: v.detach() for n, v in named.items()}


def free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def environment(rank: int, port: str) -> dict[str, str]:
    own = {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
    }
    return {**os.environ, **own, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


def run_both(argv: list[str]) -> list[subprocess.CompletedProcess[str]]:
    port = free_port()
    both = [
        subprocess.Popen(argv, cwd=ROOT, env=environment(rank, port), stdout=-1, stderr=-1, text=True)
        for rank in range(2)
    ]
    try:
        ends = [process.communicate(timeout=500) for process in both]
    finally:
        for process in both:
            process.kill()
    return [subprocess.CompletedProcess(argv, p.returncode, *end) for p, end in zip(both, ends, strict=True)]


@pytest.mark.timeout(600)
def test_two_processes_step_with_the_mean_of_their_gradients(tmp_path):
    ended = run_both([sys.executable, "-c", WORKER, str(tmp_path)])
    assert [end.returncode for end in ended] == [0, 0], ended[0].stderr + ended[1].stderr
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    for name, wanted in expected().items():
        assert torch.equal(first[name], second[name]), name
        assert torch.allclose(first[name], wanted, atol=1e-7), name


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    pytest.importorskip("diffusers")
    return write_pipeline(tmp_path_factory.mktemp("models") / "base")


MODULE = ("-m", "trilora_core")
# The verb with few points of the base's paths.
FEW_POINTS = """
import sys
from trilora_core.__main__ import main
from trilora_core.preserve import LEVELS, Amount
LEVELS["light"] = Amount(1.0, share=1.0, points=2, paths=2)
sys.exit(main(sys.argv[1:]))
"""


def train_both(
    base: Path, tmp_path: Path, *extra: str, python: tuple[str, str] = MODULE
) -> list[subprocess.CompletedProcess[str]]:
    argv = ["train", "--model", str(base), "--data", str(write_pictures(tmp_path / "pictures"))]
    argv += ["--output", str(tmp_path / "out" / "style.safetensors"), "--rank", "2", "--device", "cpu", *extra]
    return run_both([sys.executable, *python, *argv])


@pytest.mark.timeout(600)
def test_the_verb_writes_one_file_for_both(base, tmp_path):
    output = tmp_path / "out" / "style.safetensors"
    ended = train_both(base, tmp_path, "--epochs", "2", "--prior-prompt", "a red house", "--prior-count", "1")
    assert [end.returncode for end in ended] == [0, 0], ended[0].stderr + ended[1].stderr
    assert "3 steps of batch 1 x 2 processes (2 epochs)" in ended[0].stdout
    assert '1 picture of "a red house" in' in ended[0].stdout and "1 of them drawn now" in ended[0].stdout
    assert "0 of 8 entries were there already" in ended[0].stdout  # 4 pictures and 4 captions: the first encodes
    assert ended[1].stdout == ""
    left = sorted(path.name for path in output.parent.iterdir())
    assert left == ["style.log.jsonl", "style.safetensors", "style_prior"]
    assert sorted(path.name for path in (output.parent / "style_prior").iterdir()) == [
        "prior_00000.png",
        "prior_00000.txt",
    ]
    told = read_metadata(output)
    assert sum(entry["img_count"] for entry in json.loads(told["ss_dataset_dirs"]).values()) == 3
    assert (told["ss_num_train_images"], told["ss_total_batch_size"], told["ss_num_reg_images"]) == ("3", "2", "1")
    assert len(read_adapter(output).layers) == 32


@pytest.mark.timeout(600)
def test_the_first_watches_for_both(base, tmp_path):
    """The others wait for its measures and pictures; what is held out no process trains on."""
    output = tmp_path / "out" / "style.safetensors"
    watch = ["--validation-share", "0.3", "--validate-every", "2", "--preview-every", "2", "--preview-prompts", "a cat"]
    ended = train_both(base, tmp_path, "--steps", "2", "--lr", "0.01", *watch)
    assert [end.returncode for end in ended] == [0, 0], ended[0].stderr + ended[1].stderr
    assert "pictures:   2 pictures" in ended[0].stdout and "1 picture held out" in ended[0].stdout
    assert "step 0: validation " in ended[0].stdout and "step 2: validation " in ended[0].stdout
    assert ended[1].stdout == ""
    assert (output.parent / "style_previews" / "step_00002_0.png").is_file()
    assert read_metadata(output)["ss_num_train_images"] == "2"


@pytest.mark.timeout(600)
def test_the_first_asks_the_base_for_both_and_each_keeps_it_with_the_text_encoder_in_training(base, tmp_path):
    output = tmp_path / "out" / "style.safetensors"
    flags = ["--preserve-base", "light", "--preserve-prompts", "a house", "--text-encoder-rate", "0.5"]
    ended = train_both(base, tmp_path, "--steps", "2", "--lr", "0.01", *flags, python=("-c", FEW_POINTS))
    assert [end.returncode for end in ended] == [0, 0], ended[0].stderr + ended[1].stderr
    assert "4 points of what the base draws for 1 caption" in ended[0].stdout and ended[1].stdout == ""
    config = json.loads(read_metadata(output)["trilora.config"])
    assert config["preserve"] == {"base": "light", "prompts": ["a house"]}
    assert config["optimizer"]["text_encoder_rate"] == 0.5
    assert any(is_text(stem) for stem in read_adapter(output).layers)


@pytest.mark.timeout(600)
def test_the_others_wait_for_the_first_and_are_told_what_it_refuses(tmp_path):
    ended = run_both([sys.executable, "-c", WAITER, str(tmp_path / "made")])
    assert [end.returncode for end in ended] == [0, 0], ended[0].stderr + ended[1].stderr
    assert [end.stdout.splitlines() for end in ended] == [["made by 0", "refused by 0"]] * 2


def test_shares_cover_every_picture_once_and_noise_differs():
    dataset = toy_dataset(5)
    shares = [Crew(rank, 2).share(dataset) for rank in range(2)]
    assert sorted(shares[0].names + shares[1].names) == sorted(dataset.names)
    seeds = {Crew(rank, 2).config(TrainConfig(seed=7), dataset).seed for rank in range(2)}
    assert len(seeds) == 2 and 7 in seeds


def test_epochs_and_samples_of_an_epoch_are_those_of_all_processes_together():
    dataset = toy_dataset(7)
    dataset = dataclasses.replace(dataset, config=dataclasses.replace(dataset.config, max_train_samples=5))
    config = TrainConfig(epochs=3, batch_size=2)
    assert {Crew(rank, 2).config(config, dataset).steps for rank in range(2)} == {4}  # 15 looks, 4 at a time
    assert {Crew(rank, 2).share(dataset).epoch_size for rank in range(2)} == {3}
    assert Crew().config(config, dataset).steps == 8
    assert Crew().share(dataset).epoch_size == 5


def test_more_processes_than_pictures_are_refused():
    dataset = toy_dataset(4)
    with pytest.raises(InputError, match="4 pictures for 5 processes"):
        Crew(0, 5).share(dataset)


def test_one_process_changes_nothing():
    dataset, config = toy_dataset(4), TrainConfig(seed=7)
    assert Crew().share(dataset).names == dataset.names
    assert dataclasses.asdict(Crew().config(config, dataset)) == dataclasses.asdict(config)
    assert Crew().device("cuda:1") == "cuda:1"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--resume"], "--resume works with one process only"),
        (["--validation-share", "0.1", "--patience", "2"], "--patience works with one process only"),
    ],
)
def test_what_needs_one_process_is_refused_in_several(tmp_path, monkeypatch, capsys, flags, message):
    pictures = write_pictures(tmp_path / "pictures")
    for name, value in environment(0, free_port()).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.distributed, "init_process_group", lambda kind, timeout: None)
    monkeypatch.setattr(torch.distributed, "destroy_process_group", lambda: None)
    argv = ["train", "--model", "m", "--data", str(pictures), "--output", str(tmp_path / "o.safetensors")]
    assert main([*argv, *flags]) == 2
    assert message in capsys.readouterr().err
