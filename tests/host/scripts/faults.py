"""Faults in the host's own process: interrupts at any moment, a device that is full, one model trained and sampled in
turn, models that change; all of it without a network."""

from __future__ import annotations

import ctypes
import gc
import random
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from . import bridge_training as training
from . import bridge_training_models as small
from . import host_previewer

KIND = "sd3"  # the lightest that all hosts know
STEPS = 6
EVERY = 5  # of the interrupted runs, one is resumed and compared


def main(pack: Any, arguments: dict[str, Any]) -> dict[str, Any]:
    """Figures of every fault; arguments: checkpoint, places, interrupts, turns; warm: rounds before memory counts."""
    _block_network()
    bench, answer = _Bench(pack, arguments), {}
    for name, work in (
        ("full", lambda: {place: _full(bench, place) for place in arguments["places"]}),
        ("interrupts", lambda: _interrupts(bench, arguments["interrupts"], arguments["warm"])),
        ("turns", lambda: _turns(bench, arguments["turns"], arguments["warm"])),
    ):
        started = time.process_time()
        answer[name] = work()
        print(name, f"{time.process_time() - started:.1f} s of the processor", answer[name], flush=True)
    return answer


class _Bench:
    """Two models of one shape, pictures and a previewer's parts, and how to train on them."""

    def __init__(self, pack: Any, arguments: dict[str, Any]) -> None:
        def load(name: str) -> Any:
            return import_module(name, pack.__name__)

        self.host, self.patching = load(".nodes.host.run"), load(".nodes.host.patching")
        self.config, self.adapter = load(".trilora_core.config"), load(".trilora_core.adapter")
        self.errors, self.memory = load(".trilora_core.errors"), load(".trilora_core.memory")
        self.management = import_module("comfy.model_management")
        self.loras = Path(arguments["base_directory"]) / "models" / "loras" / "trilora"
        self.models = [small.load(KIND), small.load(KIND, seed=1)]
        self.before = [_state(patcher) for patcher in self.models]
        self.vae, self.clip = host_previewer._vae(arguments["checkpoint"]), host_previewer.ShortTextEncoder(KIND)
        generator = torch.Generator().manual_seed(0)
        latents = [torch.randn(small.channels(KIND), 8, 8, generator=generator) for _ in range(4)]
        conditions = [small.condition(KIND, seed) for seed in range(4)]
        self.pictures = load(".trilora_core.data.dataset").load_tensors(latents, conditions)

    def options(self, seed: int, **changes: Any) -> Any:
        watch = {"validation_share": 0.25, "validate_every": 2, "keep_best": True, "keep_adapters": 1}
        drawn = {"preview_every": 3, "preview_prompts": ("a",), "preview_resolution": 64, "preview_steps": 1}
        options = self.config.TrainConfig(
            steps=STEPS,
            batch_size=2,
            seed=seed,
            save_every=2,
            adapter=self.config.AdapterConfig(rank=2),
            optimizer=self.config.OptimizerConfig(learning_rate=1e-2),
            monitor=self.config.MonitorConfig(**watch, **drawn),
        )
        return replace(options, **changes)

    def train(self, name: str, options: Any, *, resume: bool = False, model: int = 0) -> Any:
        with torch.inference_mode():
            return self.host.train_in_host(
                self.models[model],
                self.pictures,
                name,
                options,
                resume=resume,
                start_from=None,
                prior=None,
                node_id=None,
                clip=self.clip,
                vae=self.vae,
            )[0]

    def file(self, name: str) -> dict[str, torch.Tensor]:
        return load_file(self.loras / f"{name}.safetensors")

    def untouched(self) -> bool:
        """Both models have their bits, their tensors and no hook, and the host does not think that it trains."""
        clean = all(training._clean(patcher.model) for patcher in self.models)
        flag = getattr(self.management, "in_training", False)
        return clean and not flag and [_state(patcher) for patcher in self.models] == self.before

    def same_bits(self) -> bool:
        """As `untouched`, but the host, which exchanges a weight's tensor to patch it, may have given back another."""
        clean = all(training._clean(patcher.model) for patcher in self.models)
        bits = [training._contents(patcher.model) for patcher in self.models]
        return clean and bits == [contents for contents, _ in self.before]


def _state(patcher: Any) -> Any:
    return training._contents(patcher.model), training._objects(patcher.model)


def _block_network() -> None:
    """Any use of the network from here on is an error; the hook stays for the life of the process."""

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event in ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto"):
            raise AssertionError(f"the network was asked: {event} {arguments}")

    sys.addaudithook(hook)


def _seen() -> tuple[int, int]:
    """Bytes of this process in memory, and tensors alive."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # or what the allocator keeps for later passes for growth
    resident = int(Path("/proc/self/statm").read_text().split()[1]) * 4096
    return resident, sum(issubclass(type(one), torch.Tensor) for one in gc.get_objects())


def _grown(before: tuple[int, int], rounds: int) -> dict[str, Any]:
    resident, alive = _seen()
    return {"bytes_a_round": (resident - before[0]) / max(1, rounds), "tensors_more": alive - before[1]}


def _same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def _interrupts(bench: _Bench, count: int, warm: int) -> dict[str, Any]:
    """The host's own interrupt, set by another thread at a random moment of a run: what came of each."""
    bench.train("whole", bench.options(0))
    started = time.process_time()
    bench.train("whole_1", bench.options(1))
    took = time.process_time() - started
    found, touched, wrong, before = Counter[str](), 0, 0, (0, 0)
    for number in range(count + warm):
        draw, name, options = random.Random(number), f"cut{number}", bench.options(10 + number)
        found[_interrupted(bench, name, options, draw.random() * took)] += 1
        touched += not bench.untouched()
        assert not list(bench.loras.glob(".*.part"))
        if number % EVERY == 0:
            bench.train(name, options, resume=True)
            bench.train(f"uncut{number}", options)
            wrong += not _same(bench.file(name), bench.file(f"uncut{number}"))
            found["resumed and compared"] += 1
        if number == warm - 1:
            before = _seen()
    return {"found": dict(found), "touched": touched, "wrong": wrong, **_grown(before, count)}


def _interrupted(bench: _Bench, name: str, options: Any, after: float) -> str:
    interrupt = bench.management.InterruptProcessingException
    over, end = threading.Event(), time.process_time() + after

    def press() -> None:
        while not over.wait(0.002):
            if time.process_time() >= end:
                bench.management.interrupt_current_processing(True)
                return

    timer = threading.Thread(target=press)
    timer.start()
    try:
        bench.train(name, options)
    except interrupt:
        kept = list(bench.loras.glob(f"{name}_stopped_at_*.safetensors"))
        return "kept" if kept and _whole(kept) else "before the first step"
    finally:
        over.set()
        timer.join()
        bench.management.interrupt_current_processing(False)
    return "too late"


def _whole(paths: list[Path]) -> bool:
    return all(value.isfinite().all() for path in paths for value in load_file(path).values())


def _turns(bench: _Bench, count: int, warm: int) -> dict[str, Any]:
    """Train, draw with the adapter, draw without, on two models in turn: every round must be as the first."""
    first: dict[int, Any] = {}
    wrong, before = Counter[str](), (0, 0)
    for number in range(count + warm):
        which = number % 2
        outcome = bench.train(f"turn{number}", bench.options(7), model=which)
        patcher = bench.models[which]
        applied, _ = bench.patching.apply(outcome.adapter, patcher, 1.0, None)
        now = bench.file(f"turn{number}"), _sampled(applied), _sampled(patcher)
        first.setdefault(which, now)
        wrong["adapter"] += not _same(now[0], first[which][0])
        wrong["with it"] += not torch.equal(now[1], first[which][1])
        wrong["without"] += not torch.equal(now[2], first[which][2])
        wrong["no effect"] += torch.equal(now[1], now[2])
        wrong["touched"] += not bench.same_bits()
        if number == warm - 1:
            before = _seen()
    wrong["models alike"] += torch.equal(first[0][2], first[1][2])
    return {"wrong": sum(wrong.values()), "what": dict(wrong), **_grown(before, count)}


def _sampled(patcher: Any) -> torch.Tensor:
    import nodes

    with torch.inference_mode():
        latent = {"samples": torch.zeros(1, small.channels(KIND), 8, 8)}
        positive, negative = [small.condition(KIND, 1)], [small.condition(KIND, 2)]
        (drawn,) = nodes.KSampler().sample(patcher, 3, 2, 4.0, "euler", "normal", positive, negative, latent)
        return drawn["samples"].clone()


def _full(bench: _Bench, place: str) -> dict[str, Any]:
    """The device is full at one place of a run: what it said, and whether the work goes on to the same bits."""
    options, problem, kept = bench.options(3), "", []
    with _breaking(bench, place):
        try:
            bench.train(place, options)
        except bench.errors.InputError as error:
            problem = str(error)
            kept = list(bench.loras.glob(f"{place}_stopped_at_*.safetensors"))
    untouched = bench.untouched()
    if problem:
        bench.train(place, options, resume=True)
    if not (bench.loras / "reference.safetensors").exists():
        bench.train("reference", options)
    return {
        "problem": problem,
        "kept": [path.stem for path in kept if _whole([path])],
        "untouched": untouched and bench.untouched(),
        "same": _same(bench.file(place), bench.file("reference")),
    }


@contextmanager
def _breaking(bench: _Bench, place: str) -> Iterator[None]:
    """Have some calls of what does the work at a place raise what torch does on a full device."""
    import comfy.sample

    odd = set(range(1, 100, 2))  # each second one is on the CPU
    owner, name, at = {
        "forward": (bench.host.HostDenoiser, "predict", {12}),
        "backward": (torch.Tensor, "backward", {5}),
        "optimizer": (torch.optim.AdamW, "step", {4}),
        "preview": (comfy.sample, "sample", {2}),
        "save": (bench.adapter.spectral, "canonical_many", odd),
    }[place]
    inner, calls = getattr(owner, name), [0]

    def called(*args: Any, **given: Any) -> Any:
        calls[0] += 1
        if calls[0] in at:
            if place == "optimizer":  # it has moved some parameters by then
                inner(*args, **given)
            raise bench.memory.OUT_OF_MEMORY("CUDA out of memory. Tried to allocate 2.00 GiB")
        return inner(*args, **given)

    setattr(owner, name, called)
    try:
        yield
    finally:
        setattr(owner, name, inner)
    assert calls[0] >= min(at), f"{place} was never full"
