"""The command line: one file per verb, each with `add_arguments(parser)` and `run(arguments) -> exit code`."""

from __future__ import annotations

__all__ = ["VERBS"]

# What `--help` shows, in this order; the file of a verb is imported only when it is called.
VERBS: dict[str, str] = {
    "dataset": "show what a folder of pictures and captions holds, before anything is trained",
    "train": "train an adapter on a folder of captioned pictures",
    "apply": "draw pictures with an adapter, at one strength or several",
    "merge": "add several adapters into one",
    "resize": "cut an adapter to a smaller rank",
    "extract": "make an adapter of a fine-tuned model and the model that it was tuned from",
    "convert": "write an adapter in another spelling, for other programs",
    "inspect": "show what an adapter file holds",
    "evaluate": "judge pictures: FID, KID, CLIP score, diversity, drift, artefacts; an HTML report",
    "rate": "let people choose between pictures without knowing which is which; win rates",
    "demo": "train on the small model and pictures that ship with this repository",
}
