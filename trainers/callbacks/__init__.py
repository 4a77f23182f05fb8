"""What is watched during training."""

from trainers.callbacks.codebook import CodebookUsage
from trainers.callbacks.export import ExportModel
from trainers.callbacks.grid import ReconstructionGrid

__all__ = ["CodebookUsage", "ExportModel", "ReconstructionGrid"]
