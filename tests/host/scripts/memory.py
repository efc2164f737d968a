"""A training node's run on the host's own model: the estimate before it, and a device that is full on the way."""

from __future__ import annotations

import logging
from importlib import import_module
from typing import Any

import torch

from . import bridge_training as training
from . import bridge_training_models as small


class _Lines(logging.Handler):
    """Keeps what the pack logs."""

    def __init__(self) -> None:
        super().__init__()
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(record.getMessage())


def main(pack: Any, arguments: dict[str, Any]) -> dict[str, Any]:
    """Train SD1.5's shape to the end, then with a model that is out of memory at its fourth batch."""
    data, config = (
        import_module(name, pack.__name__) for name in (".trilora_core.data.dataset", ".trilora_core.config")
    )
    host, core = (import_module(name, pack.__name__) for name in (".nodes.host.run", ".trilora_core.memory"))
    lines = _Lines()
    logging.getLogger("trilora").addHandler(lines)
    logging.getLogger("trilora").setLevel(logging.INFO)
    latents = [torch.randn(small.channels("sd15"), 8, 8, generator=torch.Generator().manual_seed(i)) for i in range(4)]
    pictures = data.load_tensors(latents, [small.condition("sd15", seed) for seed in range(4)])
    options = config.TrainConfig(steps=6, batch_size=2, adapter=config.AdapterConfig(rank=2))
    patcher = small.load("sd15")
    before, objects = training._contents(patcher.model), training._objects(patcher.model)

    def run(name: str) -> Any:
        return host.train_in_host(
            patcher, pictures, name, options, resume=False, start_from=None, prior=None, node_id=None
        )[0]

    answer: dict[str, Any] = {"finished": run("whole").finished, "log": list(lines.texts)}
    inner, calls = host.HostDenoiser.predict, [0]

    def full(self: Any, *batch: Any) -> Any:
        calls[0] += 1
        if calls[0] == 5:  # the first one only measures
            raise core.OUT_OF_MEMORY("CUDA out of memory. Tried to allocate 2.00 GiB")
        return inner(self, *batch)

    host.HostDenoiser.predict = full
    options = config.TrainConfig(steps=6, batch_size=2, seed=1, adapter=config.AdapterConfig(rank=2))
    try:
        run("part")
    except ValueError as error:
        answer |= {"error": str(error), "kind": type(error).__name__}
    finally:
        host.HostDenoiser.predict = inner
    answer["untouched"] = training._contents(patcher.model) == before and training._objects(patcher.model) == objects
    answer["clean"] = training._clean(patcher.model)
    answer["again"] = run("again").finished
    return answer
