"""Train on the small model and the captioned pictures that ship with this repository, and show what changed."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

import torch

from ..backend_diffusers import DiffusersPreviewer
from ..config import AdapterConfig, OptimizerConfig, TrainConfig
from ..config_data import DataConfig
from ..data import MemoryStore
from ..demo import BASE, PICTURES, PROMPTS, TRIGGER_WORD
from ..errors import InputError
from ..grid import plan
from ..keeper import Outcome
from ..plots import picture_grid, plot_losses
from ..plots_spectrum import plot_adapters
from .apply import draw
from .bar import train_with_bar
from .base import choose_device, load_base, own_resolution
from .parser import Arguments, OneLineParser, whole
from .pictures import encode
from .store import CountedStore
from .summary import summary
from .train import prepare

__all__ = ["EXAMPLES", "USAGE", "add_arguments", "run"]

USAGE = "[options]"
EXAMPLES = """\
examples:
  python -m trilora_core demo
  python -m trilora_core demo --steps 50 --output quick_demo"""

REPOSITORY = Path(__file__).resolve().parents[2]
STRENGTHS = (0.0, 0.5, 1.0, 1.5)
_GUIDANCE = 2.0  # the small model is steadiest here
_DRAWING_STEPS = 20


def add_arguments(parser: OneLineParser) -> None:
    """Declare the options."""
    parser.add_argument(
        "--output", metavar="DIR", type=Path, default=Path("demo"), help="folder to fill (default: demo)"
    )
    parser.add_argument("--steps", type=whole, default=450, help="optimizer steps (default: 450)")
    parser.add_argument("--seed", type=whole, default=0, help="same seed, same adapter (default: 0)")
    parser.add_argument("--device", default="auto", help="auto (a GPU if there is one; default), cpu or cuda")


def run(arguments: Arguments) -> int:
    """Train, draw before and after, plot, say what to do next."""
    started = time.perf_counter()
    if not (BASE / "model_index.json").is_file():
        raise InputError(
            f"the demo's model is not in {BASE}: the registry's archive leaves it out; clone the repository"
        )
    folder: Path = arguments.output
    device = choose_device(arguments.device)
    torch.set_num_threads(1)  # the demo's tensors are so small that a second thread only waits
    pipe = load_base(str(BASE), device, "fp32")
    store = CountedStore(MemoryStore())
    dataset = encode(pipe, DataConfig(str(PICTURES), own_resolution(pipe), TRIGGER_WORD), store)
    prepared = prepare(pipe, dataset, _config(arguments.steps, arguments.seed), device)
    print("\n".join(summary(prepared, dataset, device, store)))
    outcome = train_with_bar(prepared, folder / "zorblin_style.safetensors")
    _show(pipe, outcome, folder, arguments.seed)
    print(f"\ndone in {time.perf_counter() - started:.0f} seconds; look at:")
    for name, what in _RESULTS.items():
        print(f"  {(folder / name).resolve()}  {what}")
    print(_next_steps(folder))
    return 0


_RESULTS = {
    "before_after.png": "the same noise without the adapter and at three strengths",
    "loss.png": "the loss of every step",
    "spectrum.png": "the singular values that were learned",
    "zorblin_style.safetensors": "the adapter, a plain LoRA file",
}


def _config(steps: int, seed: int) -> TrainConfig:
    return TrainConfig(
        steps=steps,
        batch_size=8,
        seed=seed,
        adapter=AdapterConfig(rank=16),
        optimizer=OptimizerConfig(learning_rate=2e-3, schedule="cosine", warmup_steps=10),
    )


def _show(pipe: Any, outcome: Outcome, folder: Path, seed: int) -> None:
    """Draw the grid of prompts and strengths, the loss curve and the spectrum."""
    previewer = DiffusersPreviewer(pipe, steps=_DRAWING_STEPS, guidance=_GUIDANCE)
    prompts = [prompt for prompt, _ in PROMPTS]
    laid_out = plan(prompts, [""], STRENGTHS)
    rows = draw(pipe, previewer, [outcome.adapter], laid_out, prompts, seed)
    labels = [f"{prompt}\n[not trained on]" if held_out else prompt for prompt, held_out in PROMPTS]
    picture_grid(rows, folder / "before_after.png", row_labels=labels, column_labels=laid_out.column_labels)
    plot_losses(outcome.losses, folder / "loss.png", title="Training loss of the demo")
    plot_adapters([outcome.adapter], ["What the demo's adapter learned"], folder / "spectrum.png")


def _next_steps(folder: Path) -> str:
    """Commands to go on with, and the way into a ComfyUI if there is one."""
    python = _python()
    adapter = folder / "zorblin_style.safetensors"
    lines = [
        "",
        "next:",
        "  draw something else with it",
        f"    {python} -m trilora_core apply --model trilora_core/demo/base --adapter {adapter} \\",
        f'        --prompt "an orange cat at night, {TRIGGER_WORD}" --guidance {_GUIDANCE} --output {folder}/mine.png',
        "  see what it holds",
        f"    {python} -m trilora_core inspect {adapter}",
        "  train on your own pictures, on Stable Diffusion 1.5 or SDXL",
        f"    {python} -m trilora_core train --help",
    ]
    return "\n".join(lines + _comfyui_lines())


def _comfyui_lines() -> list[str]:
    host = _find_comfyui()
    if host is None:
        return ["  in ComfyUI: see README.md"]
    lines = [f"  the same in the ComfyUI at {host}"]
    windows = os.name == "nt"
    link, copy = ("mklink /D {1} {0}", "xcopy /E /I {0} {1}") if windows else ("ln -s {0} {1}", "cp -r {0} {1}")
    if host / "custom_nodes" not in REPOSITORY.parents:
        lines.append("    " + link.format(f'"{REPOSITORY}"', f'"{host / "custom_nodes" / "trilora"}"'))
    lines.append("    " + copy.format(f'"{PICTURES}"', f'"{host / "input" / "zorblin"}"'))
    lines.append("    start it, open Workflow > Browse Templates > trilora > train_style, choose your")
    lines.append(f'    checkpoint and the folder zorblin, set the trigger word to "{TRIGGER_WORD}", and queue it')
    return lines


def _find_comfyui() -> Path | None:
    """The ComfyUI that COMFYUI_PATH names, that holds this pack, or that ComfyUI's installer makes by default."""
    named = os.environ.get("COMFYUI_PATH")
    around = [folder.parent for folder in REPOSITORY.parents if folder.name == "custom_nodes"]
    places = [*([Path(named)] if named else []), *around, Path.home() / "comfy" / "ComfyUI"]
    return next((place for place in places if (place / "comfy").is_dir() and (place / "main.py").is_file()), None)


def _python() -> str:
    """How to call this interpreter from the folder that one is in."""
    path = Path(sys.executable)
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else "python"
