"""The node that makes one adapter of two."""

from __future__ import annotations

from comfy_api.latest import io

from ..trilora_core.calibration import Calibration
from ..trilora_core.card import adapter_card, merge_card
from ..trilora_core.fileformat import Adapter
from ..trilora_core.merge import METHODS, MergeOptions, merge
from ..trilora_core.metadata import architecture_of
from .host.compute import algebra_device
from .host.events import announce, reporter
from .sockets import CARD, CATEGORY, AdapterSocket, CalibrationSocket

__all__ = ["MergeTriLoRA"]

_DEFAULT = MergeOptions()


class MergeTriLoRA(io.ComfyNode):
    """Two adapters to one."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Ids and names are fixed: saved workflows hold them. New widgets go last."""
        return io.Schema(
            node_id="MergeTriLoRA",
            display_name="Merge TriLoRA",
            category=CATEGORY,
            description="Makes one adapter of two for the same base model. They may differ in rank and layers.",
            inputs=[
                AdapterSocket.Input("trilora_a", tooltip="The first adapter."),
                AdapterSocket.Input("trilora_b", tooltip="The second adapter, for the same base model."),
                _weight("weight_a", "first"),
                _weight("weight_b", "second"),
                io.Combo.Input(
                    "method",
                    options=list(METHODS),
                    default="sum",
                    tooltip="\n".join(f"{name}: {method.when}." for name, method in METHODS.items()),
                ),
                io.Int.Input(
                    "rank",
                    default=_DEFAULT.rank,
                    min=0,
                    max=1024,
                    tooltip="Rank of the result. 0 keeps all that the method gives (ties and dare: the rank of both "
                    "together). Smaller makes a smaller file that keeps the strongest directions.",
                ),
                *_options(),
            ],
            outputs=[AdapterSocket.Output(display_name="trilora", tooltip="To Apply or Save TriLoRA.")],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(
        cls,
        trilora_a: Adapter,
        trilora_b: Adapter,
        weight_a: float,
        weight_b: float,
        method: str,
        rank: int,
        density: float = _DEFAULT.density,
        keep_energy: float = _DEFAULT.keep_energy,
        seed: int = _DEFAULT.seed,
        prior_weight: float = _DEFAULT.prior_weight,
        calibration_a: Calibration | None = None,
        calibration_b: Calibration | None = None,
    ) -> io.NodeOutput:
        """Merge, and say what was kept, what was left out, and where the two get in each other's way."""
        given = [calibration for calibration in (calibration_a, calibration_b) if calibration is not None]
        merged, report = merge(
            [trilora_a, trilora_b],
            [weight_a, weight_b],
            method=method,
            options=MergeOptions(rank, keep_energy, density, seed, prior_weight),
            calibrations=given if method in METHODS and METHODS[method].calibrated else (),
            device=algebra_device(),
            progress=reporter(cls.hidden.unique_id, "layer"),
        )
        text = "\n".join(report.lines())
        announce(cls.hidden.unique_id, text, report.remarks())
        card = {**adapter_card(merged), "merge": merge_card(report, architecture_of(merged))}
        return io.NodeOutput(merged, ui={"text": (text,), CARD: (card,)})


def _weight(name: str, which: str) -> io.Float.Input:
    tooltip = f"Strength of the {which} adapter: 1 as it is, 0 leaves it out, below 0 takes it away."
    return io.Float.Input(name, default=1.0, min=-20.0, max=20.0, step=0.05, tooltip=tooltip)


def _options() -> list[io.Input]:
    """What only some methods use, and the cut by energy."""
    return [
        io.Float.Input(
            "density",
            default=_DEFAULT.density,
            min=0.01,
            max=1.0,
            step=0.01,
            optional=True,
            tooltip="Share that each adapter keeps, 1 for all: of its entries in ties, dare, dare_ties and knots, of "
            "its directions in tsv. Lower when the two blur each other, higher when the result is too weak. "
            "Other methods ignore it.",
        ),
        io.Float.Input(
            "keep_energy",
            default=_DEFAULT.keep_energy,
            min=0.01,
            max=1.0,
            step=0.01,
            optional=True,
            tooltip="Cuts each layer to the lowest rank that holds this share of its energy; 1 cuts nothing. 0.95 "
            "makes a much smaller file. With rank, the lower of the two holds.",
        ),
        io.Int.Input(
            "seed",
            default=_DEFAULT.seed,
            min=0,
            max=2**32 - 1,
            control_after_generate=False,
            optional=True,
            tooltip="Which entries dare and dare_ties drop; the same seed gives the same file. Others ignore it.",
        ),
        io.Float.Input(
            "prior_weight",
            default=_DEFAULT.prior_weight,
            min=0.0,
            max=100.0,
            step=0.1,
            optional=True,
            tooltip="Only for regmean: how much counts that other prompts draw what they drew before, beside what one "
            "adapter learned. 0 not at all; more when the merged adapter changes pictures that it should not.",
        ),
        CalibrationSocket.Input(
            "calibration_a",
            optional=True,
            tooltip="Only for regmean: from TriLoRA Calibrate, with the data set of the first adapter.",
        ),
        CalibrationSocket.Input(
            "calibration_b", optional=True, tooltip="Only for regmean: the same with the data set of the second."
        ),
    ]
