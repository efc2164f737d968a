"""The comparison of the paper's Table 1 on your own model and pictures.

    python benchmarks/paper/run.py pokemon  --model MODEL --data PICTURES --output DIR --inception FILE --clip DIR
    python benchmarks/paper/run.py clothing --model MODEL --data PICTURES --output DIR --inception FILE --clip DIR
    python benchmarks/paper/run.py long     --model MODEL --data PICTURES --output DIR

Two paths are needed: a base model (a diffusers folder or one .safetensors) and a folder of captioned pictures. LoRA,
the paper's TriLoRA and this package's default are trained alike; with each, and with the base, one picture is drawn for
every caption (seed 30, 20 steps, guidance 7.5); `python -m trilora_core evaluate` measures them where weights of the
Inception network and of a CLIP are given by their paths. Everything lies in DIR; the same command again does only what
is missing there, so a run may be stopped at any time.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
from trilora_core.__main__ import main as trilora  # noqa: E402
from trilora_core.backend_diffusers import DiffusersPreviewer, apply_adapter  # noqa: E402
from trilora_core.cli.base import choose_device, load_base, own_resolution  # noqa: E402
from trilora_core.data import scan_folder  # noqa: E402
from trilora_core.errors import InputError  # noqa: E402
from trilora_core.fileformat import read_adapter  # noqa: E402
from trilora_core.milestones import step_path  # noqa: E402

SEED, DRAWING_STEPS, GUIDANCE = 30, 20, 7.5  # section 4.2
ARMS: dict[str, tuple[str, ...]] = {  # what differs between them
    "LoRA": ("--method", "lora", "--init", "ones"),
    "TriLoRA (paper's init)": ("--init", "svd"),
    "TriLoRA (our default)": ("--init", "svd-mean"),
}
BASE = "base"


@dataclass(frozen=True)
class Protocol:
    """One experiment; `marks` are the shares of its epochs after which pictures are drawn."""

    epochs: int
    rate: float
    most: int = 0  # pictures of each epoch, drawn anew
    marks: tuple[float, ...] = (1.0,)
    told: dict[str, tuple[float, float]] | None = None  # normalised FID and CLIP score in the paper's Table 1


PROTOCOLS = {
    "pokemon": Protocol(
        100, 1e-4, 100, told={BASE: (1.0, 29.2), "LoRA": (0.867, 30.3), "TriLoRA (paper's init)": (0.796, 30.1)}
    ),
    "clothing": Protocol(
        10, 5e-5, told={BASE: (1.0, 32.2), "LoRA": (0.923, 32.5), "TriLoRA (paper's init)": (0.833, 32.5)}
    ),
    "long": Protocol(1000, 1e-4, marks=(0.25, 0.5, 0.75, 1.0)),  # section 5: artefacts from epoch 500 on
}


@dataclass(frozen=True)
class Set:
    """Pictures that one arm has drawn after a share of its epochs."""

    arm: str
    mark: float
    folder: Path
    adapter: Path | None


def prompts(chosen: argparse.Namespace, trigger: str) -> list[str]:
    """The set's captions behind a trigger word."""
    sources = scan_folder(chosen.data).sources
    texts = [source.caption or "" for source in sources][: chosen.prompts or None]
    return [", ".join(part for part in (trigger, text) if part) for text in texts]


def steps_of(chosen: argparse.Namespace, protocol: Protocol) -> int:
    """Optimizer steps of all epochs."""
    count = len(scan_folder(chosen.data).sources)
    looks = chosen.epochs * (min(count, protocol.most) if protocol.most else count)
    return -(-looks // chosen.batch_size)


def learn(chosen: argparse.Namespace, protocol: Protocol, arm: str, output: Path) -> None:
    """One adapter by the command line; a finished one is taken as it is, a stopped one goes on."""
    steps = steps_of(chosen, protocol)
    shared = {
        "--model": chosen.model,
        "--data": chosen.data,
        "--output": output,
        "--steps": steps,
        "--lr": protocol.rate,
        "--max-train-samples": protocol.most,
        "--rank": chosen.rank,
        "--batch-size": chosen.batch_size,
        "--seed": chosen.seed,
        "--device": chosen.device,
        "--save-every": max(1, min(round(mark * steps) for mark in protocol.marks)),
        "--keep-adapters": len(protocol.marks) if len(protocol.marks) > 1 else 0,
    }
    if chosen.resolution:
        shared["--resolution"] = chosen.resolution
    if chosen.trigger_word:
        shared["--caption-prefix"] = f"{chosen.trigger_word}, "
    words = [str(word) for pair in shared.items() for word in pair]
    if trilora(["train", *words, *ARMS[arm], "--resume"]):
        raise SystemExit(2)


def draw(chosen: argparse.Namespace, pipe: Any, one: Set) -> None:
    """A picture for each caption, those that are not there yet; a caption lies beside each as a .txt."""
    texts = prompts(chosen, chosen.base_word if one.adapter is None else chosen.trigger_word)
    plain = prompts(chosen, "")
    one.folder.mkdir(parents=True, exist_ok=True)
    missing = [n for n in range(len(texts)) if not (one.folder / f"{n:05}.png").is_file()]
    if not missing:
        return
    previewer = DiffusersPreviewer(
        pipe, steps=chosen.drawing_steps, guidance=GUIDANCE, resolution=chosen.resolution or 0
    )
    with ExitStack() as stack:
        if one.adapter is not None:
            stack.enter_context(apply_adapter(pipe, read_adapter(one.adapter)))
        for done, number in enumerate(missing):
            (picture,) = previewer.preview([texts[number]], [SEED])
            # the caption without a trigger word: what the picture is to show, whichever word the model knows it by
            (one.folder / f"{number:05}.txt").write_text(plain[number] + "\n", encoding="utf-8")
            _write(picture, one.folder / f"{number:05}.png")
            if done % 20 == 0:
                print(f"{one.arm}, {one.mark:.0%}: picture {done + 1} of {len(missing)}", flush=True)


def _write(picture: Image.Image, path: Path) -> None:
    half = path.with_suffix(".part")
    picture.save(half, format="PNG")
    half.replace(path)


def sets(chosen: argparse.Namespace, protocol: Protocol) -> list[Set]:
    """The base's pictures, and those of every arm at every mark."""
    steps, found = steps_of(chosen, protocol), [Set(BASE, 0.0, chosen.output / "base", None)]
    for arm in ARMS:
        name = "_".join("".join(c if c.isalnum() else " " for c in arm.lower()).split())
        final = chosen.output / f"{name}.safetensors"
        for mark in protocol.marks:
            adapter = final if mark == 1.0 else step_path(final, _saved_at(steps, protocol, mark))
            found.append(Set(arm, mark, chosen.output / f"{name}_{round(100 * mark):03}", adapter))
    return found


def _saved_at(steps: int, protocol: Protocol, mark: float) -> int:
    """The save that a mark falls on: marks are whole multiples of the first one, to a step."""
    every = max(1, min(round(m * steps) for m in protocol.marks))
    return every * max(1, round(mark * steps / every))


def measure(chosen: argparse.Namespace, wanted: Sequence[Set], side: int) -> dict[str, dict[str, float]]:
    """What `evaluate` says of every set, by the name of its folder; made anew, since it may have got weights by now."""
    stem = chosen.output / "report"
    words = ["--real", str(chosen.data), "--generated", *(str(one.folder) for one in wanted[1:])]
    words += ["--reference", str(wanted[0].folder), "--resolution", str(side), "--output", str(stem)]
    words += ["--inception", str(chosen.inception)] if chosen.inception else []
    words += ["--clip", str(chosen.clip)] if chosen.clip else []
    if trilora(["evaluate", *words]):
        raise SystemExit(2)
    sets = json.loads(stem.with_name("report.json").read_text(encoding="utf-8"))["sets"]
    return {
        Path(one["folder"]).name: {kind: figure["value"] for kind, figure in one["figures"].items()} for one in sets
    }


def table(protocol: Protocol, wanted: Sequence[Set], found: Mapping[str, Mapping[str, float]]) -> str:
    """Markdown: every figure that the report has, and the paper's own where there is one."""
    kinds = list(dict.fromkeys(kind for figures in found.values() for kind in figures))
    told = protocol.told or {}
    heads = ["", "epochs", *kinds, *(("paper: NFID", "paper: CLIP") if told else ())]
    rows = []
    for one in wanted:
        figures = found.get(one.folder.name, {})
        cells = [f"{figures[kind]:.4g}" if kind in figures else "–" for kind in kinds]
        papers = [f"{value:g}" for value in told[one.arm]] if one.arm in told else ["–", "–"]
        rows.append([one.arm, f"{one.mark:.0%}", *cells, *(papers if told else [])])
    lines = [f"| {' | '.join(row)} |" for row in (heads, ["---"] * len(heads), *rows)]
    return "\n".join(lines) + "\n"


def main(argv: Sequence[str] | None = None) -> int:
    """Train, draw, measure, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("protocol", choices=list(PROTOCOLS))
    parser.add_argument("--model", required=True, help="base model: a diffusers folder or one .safetensors")
    parser.add_argument("--data", type=Path, required=True, help="folder of captioned pictures")
    parser.add_argument("--output", type=Path, required=True, help="folder of everything that comes out")
    parser.add_argument("--inception", type=Path, help="weights for FID, as `evaluate` wants them")
    parser.add_argument("--clip", type=Path, help="folder of a CLIP for the CLIP score, as `evaluate` wants it")
    parser.add_argument("--trigger-word", default="", help="rare letters before every caption, learned and asked for")
    parser.add_argument("--base-word", default="", help="what the base is asked for in their place, such as Pokemon")
    parser.add_argument("--rank", type=int, default=4, help="of all arms; the paper does not say (default: 4)")
    parser.add_argument("--batch-size", type=int, default=1, help="the paper does not say (default: 1)")
    parser.add_argument("--seed", type=int, default=0, help="of training (default: 0)")
    parser.add_argument("--resolution", type=int, default=0, help="pixels (default: the model's own)")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--epochs", type=int, default=0, help="other than the protocol's, for a trial")
    parser.add_argument("--prompts", type=int, default=0, help="only the first captions, for a trial")
    parser.add_argument("--drawing-steps", type=int, default=DRAWING_STEPS, help="other than 20, for a trial")
    chosen = parser.parse_args(argv)
    protocol = PROTOCOLS[chosen.protocol]
    chosen.epochs = chosen.epochs or protocol.epochs
    chosen.output.mkdir(parents=True, exist_ok=True)
    try:
        return compare(chosen, protocol)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def compare(chosen: argparse.Namespace, protocol: Protocol) -> int:
    """All steps of a protocol in their order."""
    wanted = sets(chosen, protocol)
    for arm in ARMS:
        final = next(one.adapter for one in wanted if one.arm == arm and one.mark == 1.0)
        assert final is not None
        learn(chosen, protocol, arm, final)
    pipe = load_base(chosen.model, choose_device(chosen.device), "auto")
    side = chosen.resolution or own_resolution(pipe)
    for one in wanted:
        draw(chosen, pipe, one)
    del pipe
    text = table(protocol, wanted, measure(chosen, wanted, side))
    (chosen.output / "table.md").write_text(text, encoding="utf-8")
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
