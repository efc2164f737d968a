"""The command line as a whole: verbs, help, exit codes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from trilora_core.__main__ import main
from trilora_core.cli import VERBS

ROOT = Path(__file__).resolve().parents[1]

DATA = """--data --resolution --no-buckets --bucket-step --upscale --random-crop --crops --flip --max-train-samples
    --skip-unreadable --trigger-word --caption-prefix --caption-suffix --shuffle-captions --keep-tags
    --caption-variants --caption-dropout --mask-alpha --masks --mask-floor --cache"""

OPTIONS = {
    "dataset": f"{DATA} --config --sheet --json",
    "train": f"""{DATA} --config --model --output --prior --prior-prompt --prior-count --prior-seed --prior-weight
        --prior-batch-size --cache-limit --rank --rank-cap --alpha --init --method --companion-rank --lr --optimizer
        --weight-decay --schedule --warmup-steps --clip-norm --accumulation --steps --epochs --batch-size --seed
        --precision --gradient-checkpointing --save-every --resume --dtype --plot --device --base-dtype --start-from
        --layers --layers-include --layers-exclude --rank-dropout --up-rate --sigma-rate --down-rate
        --text-encoder-rate --ema --timesteps
        --logit-mean --logit-std --shift --min-snr-gamma --noise-offset --orthogonality --validation-share
        --validate-every --patience --preview-every --preview-prompts --preview-seed --keep-adapters --keep-best
        --keep-state""",
    "apply": """--model --adapter --output --prompt --strength --seed --negative --steps --guidance --resolution
        --keep-rank --keep-energy --tone --normalize --block-preset --blocks --device --base-dtype""",
    "merge": "--weights --method --rank --dtype --output",
    "resize": "--rank --energy --dtype --output",
    "extract": """--rank --energy --layers --layers-include --layers-exclude --no-text-encoder --device --dtype
        --output""",
    "convert": "--to --dtype --output",
    "inspect": "--json --layers --plot",
    "evaluate": """--real --generated --reference --model --adapter --data --strength --pictures --per-caption
        --captions --seed --steps --guidance --inception --clip --output --resolution --device --base-dtype""",
    "rate": "--captions --pairs --seed --question --results --key --output",
    "demo": "--output --steps --seed",
}


@pytest.mark.parametrize("argv", [[], ["-h"], ["--help"]])
def test_the_overview_names_every_verb(argv, capsys):
    assert main(argv) == 0
    text = capsys.readouterr().out
    for verb, summary in VERBS.items():
        assert f"{verb} " in text and summary in text


@pytest.mark.parametrize("verb", VERBS)
def test_help_of_a_verb_names_every_option_and_gives_examples(verb, capsys):
    assert main([verb, "--help"]) == 0
    text = capsys.readouterr().out
    for option in OPTIONS[verb].split():
        assert f"{option} " in text or f"{option}\n" in text, option
    assert f"python -m trilora_core {verb}" in text.split("examples:")[1]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (
            ["fly"],
            f"error: there is no verb 'fly'; known: {', '.join(VERBS)}",
        ),
        (["inspect"], "the following arguments are required: FILE"),
        (["inspect", "a.safetensors", "--colour"], "unrecognized arguments: --colour"),
        (["merge", "a", "--rank", "two", "--output", "b"], "argument --rank: 'two' is not a whole number"),
        (["merge", "a", "--method", "max", "--output", "b"], "invalid choice: 'max'"),
    ],
)
def test_bad_arguments_are_one_line_and_code_2(argv, message, capsys):
    assert main(argv) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ") and captured.err.count("\n") == 1
    assert message in captured.err


def run_as_module(*argv: str, encoding: str = "utf-8") -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "trilora_core", *argv],
        cwd=ROOT,
        env={**os.environ, "PYTHONIOENCODING": encoding, "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_letters_that_the_terminal_lacks_are_spelled_out():
    with run_as_module("train", "--help", encoding="ascii") as done:
        text, error = done.communicate(timeout=120)
    assert done.returncode == 0 and error == ""
    assert r"\u03a3" in text


def test_a_reader_that_leaves_early_is_no_error():
    """As with `| head -1`: nothing is said, and 141 tells that not all was written."""
    with run_as_module("--help") as done:
        assert done.stdout is not None and done.stderr is not None
        done.stdout.close()
        assert done.stderr.read() == "" and done.wait(timeout=120) == 141


def test_as_a_module_from_the_root_of_a_clone():
    done = subprocess.run(
        [sys.executable, "-m", "trilora_core", "inspect", "missing.safetensors"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr == "error: missing.safetensors does not exist; check the name and the folder\n"
