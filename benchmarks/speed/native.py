"""The host's own Train LoRA node and this package's loop on one model, each with the host as a library.

Both sides: one thread, AdamW, rank 16, the same random model in float32, the same pictures and captions. Times
alternate in one process and the first step of each turn is left out. Memory is the peak of the resident set in a
process of its own.
"""

from __future__ import annotations

import gc
import importlib
import importlib.util
import itertools
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager, nullcontext
from pathlib import Path
from types import ModuleType
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
RANK = 16
PICTURES = 8
LEVELS = [1, 2, 4, 4]  # times 320 channels
FOLDERS = ("custom_nodes", "models/loras", "input", "output", "user", "temp")

# name -> (side, batch size, options)
CASES: dict[str, tuple[str, int, dict[str, bool]]] = {
    "here, batch 1": ("here", 1, {}),
    "native, batch 1, the same layers": ("native", 1, {"same_layers": True}),
    "native, batch 1, as it ships": ("native", 1, {"checkpointing": True}),
    "here, batch 4": ("here", 4, {}),
    "native, batch 4, the same layers": ("native", 4, {"same_layers": True}),
}


@contextmanager
def host_tasks(options: dict[str, Any], script: str) -> Iterator[Callable[..., Any]]:
    """A function that has a script do a task in the host's interpreter, in a passing folder, and gives its answer."""
    host, python = find_host()
    with tempfile.TemporaryDirectory(prefix="trilora-benchmark-") as folder:
        for name in FOLDERS:
            (Path(folder) / name).mkdir(parents=True, exist_ok=True)

        def ask(task: str, **more: Any) -> Any:
            job = {"task": task, "host": str(host), "folder": folder, **options, **more}
            answer = Path(folder) / "answer.json"
            environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPYCACHEPREFIX": str(Path(folder) / "bytecode")}
            command = [str(python), script, "--inside", json.dumps({**job, "answer": str(answer)})]
            subprocess.run(command, check=True, cwd=folder, env=environment, stdout=sys.stderr)
            return json.loads(answer.read_text())

        yield ask


def find_host() -> tuple[Path, Path]:
    """(folder, interpreter) of the ComfyUI that is measured, there or not."""
    host = Path(os.environ.get("COMFYUI_PATH", "~/comfy/ComfyUI")).expanduser()
    return host, Path(os.environ.get("COMFYUI_PYTHON", host / ".venv/bin/python"))


def version() -> tuple[int, ...]:
    """That of the ComfyUI that is found, () where none is."""
    folder, python = find_host()
    file = folder / "comfyui_version.py"
    if not file.is_file() or not python.is_file():
        return ()
    found = re.search(r'__version__ = "(\d+)\.(\d+)\.(\d+)', file.read_text(encoding="utf-8"))
    return tuple(map(int, found.groups())) if found else ()


# What follows runs in the host's interpreter.


def inside(job: dict[str, Any], tasks: Mapping[str, Callable[[dict[str, Any]], Any]]) -> None:
    """Do one task, of this module or one of `tasks`, with the host as a library and write its answer."""
    sys.path[0] = job["host"]
    sys.argv = ["main.py", "--cpu", "--base-directory", job["folder"]]
    importlib.import_module("comfy.options").enable_args_parsing()
    torch = importlib.import_module("torch")
    torch.set_num_threads(1)
    answer = {"build": _build, "times": _times, "memory": _memory, **tasks}[job["task"]](job)
    Path(job["answer"]).write_text(json.dumps(answer))


def _build(job: dict[str, Any]) -> dict[str, int]:
    import comfy.ops
    import safetensors.torch
    import torch
    from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel

    levels, blocks = job["levels"], job["res_blocks"]
    attended = [1] * min(levels, 3) + [0] * (levels - 3)  # SD1.5 has no attention at the lowest resolution
    model = UNetModel(
        image_size=32,
        in_channels=4,
        out_channels=4,
        model_channels=320,
        channel_mult=LEVELS[:levels],
        num_res_blocks=[blocks] * levels,
        transformer_depth=[depth for depth in attended for _ in range(blocks)],
        transformer_depth_output=[depth for depth in attended for _ in range(blocks + 1)],
        transformer_depth_middle=1,
        use_spatial_transformer=True,
        legacy=False,
        num_heads=8,
        num_head_channels=-1,
        context_dim=768,
        dtype=torch.float32,
        device="cpu",
        operations=comfy.ops.disable_weight_init,
    )
    generator = torch.Generator().manual_seed(0)
    weights = {}
    for name, tensor in model.state_dict().items():
        wide = tensor.ndim > 1
        values = torch.randn(tensor.shape, generator=generator)
        weights[name] = values / tensor[0].numel() ** 0.5 if wide else values * 0.05 + name.endswith("weight")
    safetensors.torch.save_file(weights, _file(job))
    count = sum(weight.numel() for weight in weights.values())
    return {"parameters": count, "bytes": 4 * count, "layers": sum(map(_adapted, weights))}


def _file(job: dict[str, Any]) -> str:
    return str(Path(job["folder"]) / "model.safetensors")


def _adapted(name: str) -> bool:
    parts = name.removesuffix(".weight").split(".")
    return name.endswith(".weight") and ("attn1" in parts or "attn2" in parts)


def _times(job: dict[str, Any]) -> dict[str, list[float]]:
    patcher, pack, material = prepare(job)
    times: dict[str, list[float]] = {name: [] for name in job["cases"]}
    for _ in range(job["rounds"]):
        for name in job["cases"]:
            side, batch, options = CASES[name]
            stamps: list[float] = []
            SIDES[side](
                patcher,
                pack,
                material,
                job["steps"] + 1,
                batch,
                lambda s=stamps: s.append(time.process_time()),
                **options,
            )
            times[name] += [after - before for before, after in itertools.pairwise(stamps)]
            print(f"{name}: {times[name][-job['steps'] :]}", flush=True)
            gc.collect()
    return times


def _memory(job: dict[str, Any]) -> dict[str, float]:
    patcher, pack, material = prepare(job)
    side, batch, options = CASES[job["case"]]
    gc.collect()
    start = _status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    found = {"model": start}

    def prepared() -> None:
        found["prepared"] = _status("VmRSS") - start

    more = {"prepared": prepared} if side == "here" else {}
    SIDES[side](patcher, pack, material, 2, batch, lambda: None, **options, **more)
    return {**found, "peak": _status("VmHWM") - start}


def _status(field: str) -> float:
    """A line of Linux's account of this process, in MiB."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) / 1024


def prepare(job: dict[str, Any]) -> tuple[Any, ModuleType, tuple[Any, list[Any]]]:
    """The model as a loader node gives it, the pack, and (latents, conditioning)."""
    import comfy.model_management
    import comfy.sd
    import torch

    spec = importlib.util.spec_from_file_location("trilora_pack", ROOT / "__init__.py")
    assert spec is not None and spec.loader is not None
    pack = importlib.util.module_from_spec(spec)
    sys.modules["trilora_pack"] = pack
    spec.loader.exec_module(pack)
    with torch.inference_mode():
        patcher = comfy.sd.load_diffusion_model(_file(job))
        comfy.model_management.load_models_gpu([patcher])
        for weight in patcher.model.state_dict().values():
            weight.sum()  # touched, so that a file that is only mapped counts as loaded
    generator = torch.Generator().manual_seed(1)
    latents = torch.randn(PICTURES, 4, job["size"], job["size"], generator=generator)
    captions = [[torch.randn(1, 77, 768, generator=generator), {}] for _ in range(PICTURES)]
    return patcher, pack, (latents, captions)


def _here(
    patcher: Any,
    pack: ModuleType,
    material: tuple[Any, list[Any]],
    steps: int,
    batch: int,
    stamp: Callable[[], None],
    *,
    prepared: Callable[[], None] = lambda: None,
) -> None:
    """Train with this pack's own loop."""

    def load(name: str) -> Any:
        return importlib.import_module(name, pack.__name__)

    config, loop = load(".trilora_core.config"), load(".trilora_core.train")
    latents, captions = material
    dataset = load(".trilora_core.data.dataset").load_tensors(list(latents), captions)
    options = config.TrainConfig(steps=steps, batch_size=batch, adapter=config.AdapterConfig(rank=RANK))
    with load(".nodes.host.training").training(patcher):
        denoiser = load(".nodes.host.denoiser").HostDenoiser(patcher)
        targets = denoiser.targets()
        adapter = load(".trilora_core.adapter").TriLoRA.create(targets, options.adapter, seed=0, data_hash="")
        run = loop.Run(options, denoiser, dataset, adapter)
        prepared()
        with adapter.attach(targets), closing(loop.train(run)) as records:
            for _ in records:
                stamp()


def _native(
    patcher: Any,
    _pack: ModuleType,
    material: tuple[Any, list[Any]],
    steps: int,
    batch: int,
    stamp: Callable[[], None],
    *,
    same_layers: bool = False,
    checkpointing: bool = False,
) -> None:
    """Run the host's node. Its defaults adapt every layer, biases and norms too, and recompute the whole model."""
    import comfy.utils
    import comfy_extras.nodes_train as nodes_train
    import torch

    latents, captions = material
    comfy.utils.set_progress_bar_global_hook(lambda *_args, **_kwargs: stamp())
    options = {
        "model": patcher,
        "latents": {"samples": latents},
        "positive": [list(entry) for entry in captions],
        "batch_size": batch,
        "steps": steps,
        "grad_accumulation_steps": 1,
        "learning_rate": 1e-4,
        "rank": RANK,
        "optimizer": "AdamW",
        "loss_function": "MSE",
        "seed": 0,
        "training_dtype": "fp32",
        "lora_dtype": "fp32",
        "quantized_backward": False,
        "algorithm": "LoRA",
        "gradient_checkpointing": checkpointing,
        "checkpoint_depth": 1,
        "offloading": False,
        "existing_lora": "[None]",
        "bucket_mode": False,
        "bypass_mode": False,
    }
    try:
        with torch.inference_mode(), _only_attention(nodes_train) if same_layers else nullcontext():
            nodes_train.TrainLoraNode.execute(**{name: [value] for name, value in options.items()})
    finally:
        comfy.utils.set_progress_bar_global_hook(None)


@contextmanager
def _only_attention(nodes_train: ModuleType) -> Iterator[None]:
    """Have the node set up adapters for the attention linears alone, by its own functions."""
    shipped = nodes_train._setup_lora_adapters

    def setup(patcher: Any, existing: Any, algorithm: str, dtype: Any, rank: int) -> tuple[dict[str, Any], list[Any]]:
        factors: dict[str, Any] = {}
        adapters = []
        for name, module in patcher.model.named_modules():
            if hasattr(module, "weight_function") and _adapted(f"{name}.weight"):
                adapter, own = nodes_train._create_weight_adapter(module, name, existing, algorithm, dtype, rank)
                factors.update(own)
                patcher.add_weight_wrapper(f"{name}.weight", adapter)
                adapters.append(adapter)
        return factors, adapters

    nodes_train._setup_lora_adapters = setup
    try:
        yield
    finally:
        nodes_train._setup_lora_adapters = shipped


SIDES: dict[str, Callable[..., None]] = {"here": _here, "native": _native}
