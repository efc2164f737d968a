"""The extension: the explicit list of node classes."""

from __future__ import annotations

from comfy_api.latest import ComfyExtension, io

from .apply import ApplyTriLoRA
from .calibrate import TriLoRACalibrate
from .dataset import TriLoRADataset, TriLoRADatasetFromImages, TriLoRADatasetFromLatents
from .dataset_options import TriLoRADatasetOptions
from .extract import ExtractTriLoRA
from .files import LoadTriLoRA, SaveTriLoRA
from .grid import TriLoRAGrid
from .hook import TriLoRAHook
from .host import routes
from .layer_options import TriLoRALayerOptions
from .merge import MergeTriLoRA
from .monitor_options import TriLoRAMonitorOptions
from .options import TriLoRAOptimizerOptions
from .preset import TriLoRAPreset
from .prior import TriLoRAPriorPictures
from .report import TriLoRADatasetReport
from .resize import ResizeTriLoRA
from .spectrum import TriLoRASpectrum
from .train import TrainTriLoRA

__all__ = ["NODES", "TriLoRAExtension"]

NODES: tuple[type[io.ComfyNode], ...] = (
    TriLoRADataset,
    TriLoRADatasetFromImages,
    TriLoRADatasetFromLatents,
    TriLoRADatasetOptions,
    TriLoRADatasetReport,
    TriLoRAPriorPictures,
    TriLoRAPreset,
    TriLoRAOptimizerOptions,
    TriLoRALayerOptions,
    TriLoRAMonitorOptions,
    TriLoRACalibrate,
    TrainTriLoRA,
    SaveTriLoRA,
    LoadTriLoRA,
    ApplyTriLoRA,
    TriLoRAHook,
    MergeTriLoRA,
    ResizeTriLoRA,
    ExtractTriLoRA,
    TriLoRASpectrum,
    TriLoRAGrid,
)


class TriLoRAExtension(ComfyExtension):
    """What the host asks for its list of nodes."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        """List every node of the pack; the oldest host asks for nothing else, so its routes are made here too."""
        routes.register()
        return list(NODES)
