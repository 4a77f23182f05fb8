"""What is watched during training."""

from trainers.callbacks.codebook import CodebookUsage
from trainers.callbacks.discriminator import DiscriminatorHealth
from trainers.callbacks.export import ExportBest, ExportModel
from trainers.callbacks.grid import ReconstructionGrid
from trainers.callbacks.last_checkpoint import LastCheckpoint
from trainers.callbacks.non_finite import StopOnNonFinite
from trainers.callbacks.throughput import Throughput

__all__ = [
    "CodebookUsage",
    "DiscriminatorHealth",
    "ExportBest",
    "ExportModel",
    "LastCheckpoint",
    "ReconstructionGrid",
    "StopOnNonFinite",
    "Throughput",
]
