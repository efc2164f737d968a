"""What reporting costs a training run: the node's text and bar, the events of the live panel, and their way out.

Run from the root of a clone, with a ComfyUI at COMFYUI_PATH or ~/comfy/ComfyUI: `python benchmarks/live.py
[--steps 600] [--rounds 3]`. First the demo's base is trained here, batch 1, which is about the shortest step that
anybody makes. Then a real ComfyUI, with a front end's websocket open, reports steps of that length that only sleep, and
such that nobody hears of, in turns. The difference of the server's process time, all of its threads, is the cost.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from memory import make_run

from tests.host.discovery import Host, find_hosts
from tests.host.server import run_server
from trilora_core.train import train

# a node that sleeps for each step, and tells it to the pack's own reporter or to nobody
NODE = """
import sys, time
class Sleeper:
    INPUT_TYPES = classmethod(lambda cls: {
        "required": {"seconds": ("FLOAT", {}), "steps": ("INT", {"max": 1000000}), "turn": ("INT", {})},
        "hidden": {"node": "UNIQUE_ID"},
    })
    RETURN_TYPES, FUNCTION, CATEGORY, OUTPUT_NODE = (), "run", "benchmark", True
    def run(self, seconds, steps, turn, node):
        part = lambda end: next(module for name, module in sys.modules.items() if name.endswith(end))
        Step = part("trilora_core.train").Step
        def told(hear):
            start = time.process_time()
            for number in range(1, steps + 1):
                time.sleep(seconds)
                hear(Step(number, steps, 0.1 + 1 / number, 1e-4, 1.0, seconds))
            return time.process_time() - start
        silent = told(lambda step: None)
        with part("nodes.host.reporter").Reporter(node, None, "benchmark", steps) as report:
            report.live.began(0, steps, can_preview=False)
            reported = told(report.step)
            report.live.end("steps")
        return {"ui": {"seconds": [silent, reported]}}
NODE_CLASS_MAPPINGS = {"Sleeper": Sleeper}
"""


def step_of_the_demo(steps: int) -> float:
    """Median process time of a training step, in seconds."""
    run = make_run("demo", 8, 1, 1, False)
    run.config = replace(run.config, steps=steps)
    taken = []
    with ExitStack() as stack:
        stack.enter_context(run.trainable.attach(run.targets()))
        start = time.process_time()
        for _ in stack.enter_context(closing(train(run))):
            taken.append(time.process_time() - start)
            start = time.process_time()
    return statistics.median(taken[1:])


def cost_of_reporting(host: Host, seconds: float, steps: int, rounds: int) -> tuple[float, float]:
    """Process time for each step that reporting adds, the median of the rounds, and events a second."""
    with tempfile.TemporaryDirectory(prefix="trilora-live-") as folder:
        base = Path(folder)
        (base / "custom_nodes").mkdir()
        (base / "custom_nodes" / "sleeper.py").write_text(NODE, encoding="utf-8")
        added, events = [], 0
        with run_server(host, base) as server, server.client.listen() as heard:
            for turn in range(rounds):
                inputs = {"seconds": seconds, "steps": steps, "turn": turn}
                outcome = server.client.run({"sleeper": {"class_type": "Sleeper", "inputs": inputs}})
                silent, reported = outcome.outputs["sleeper"]["seconds"]
                added.append((reported - silent) / steps)
            events = len(heard.of("trilora.run"))
    return statistics.median(added), events / (rounds * steps * seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    host = find_hosts()[0]
    step = step_of_the_demo(30)
    added, events = cost_of_reporting(host, step, options.steps, options.rounds)
    print(f"ComfyUI {host.name}; a step of the demo's base: {1e3 * step:.1f} ms of process time")
    print(f"reporting adds {1e3 * added:.2f} ms to a step ({100 * added / step:.2f}%), {events:.1f} events a second")


if __name__ == "__main__":
    main()
