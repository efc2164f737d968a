"""The node that shows what a data set holds and what the trainer will really see."""

from __future__ import annotations

from comfy_api.latest import io, ui

from ..trilora_core.data.pictures import to_tensor
from ..trilora_core.data.report import report
from ..trilora_core.data.sheet import contact_sheet
from .host.events import Progress
from .sockets import CATEGORY, DatasetSocket, DatasetValue

__all__ = ["TriLoRADatasetReport"]


class TriLoRADatasetReport(io.ComfyNode):
    """Data set to contact sheet and text."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Ids and names are fixed: saved workflows hold them. New widgets go last."""
        return io.Schema(
            node_id="TriLoRADatasetReport",
            display_name="TriLoRA Dataset Report",
            category=CATEGORY,
            description="Shows the pictures of a data set as they are cut and masked for training, and what may be "
            "wrong: pictures per bucket, missing captions, too small or double pictures, tags.",
            inputs=[DatasetSocket.Input("dataset", tooltip="From a TriLoRA Dataset node.")],
            outputs=[
                io.Image.Output(display_name="image", tooltip="The contact sheet."),
                io.String.Output(display_name="report", tooltip="The report as text."),
            ],
            hidden=[io.Hidden.unique_id],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, dataset: DatasetValue) -> io.NodeOutput:
        """Draw the sheet and write the report."""
        text = report(dataset.data).text()
        image = to_tensor(contact_sheet(dataset.data)).movedim(0, -1)[None]
        Progress(cls.hidden.unique_id, 1).text(text)
        shown = ui.PreviewImage(image).as_dict() | ui.PreviewText(text).as_dict()
        return io.NodeOutput(image, text, ui=shown)
