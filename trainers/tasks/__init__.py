"""What is trained and how: one LightningModule per kind of training."""

from trainers.tasks.adaptive import AdaptiveTask
from trainers.tasks.codec import CodecTask
from trainers.tasks.inversion import DistillationTask, LinCIRTask, Pic2WordTask, RTDTask
from trainers.tasks.personalisation import PersonalisationTask
from trainers.tasks.prediction import HaltingTask, ProxyTask, RollOutTask
from trainers.tasks.reconstruction import ReconstructionTask
from trainers.tasks.semantic import SemanticTask

__all__ = [
    "AdaptiveTask",
    "CodecTask",
    "DistillationTask",
    "HaltingTask",
    "LinCIRTask",
    "PersonalisationTask",
    "Pic2WordTask",
    "ProxyTask",
    "RTDTask",
    "ReconstructionTask",
    "RollOutTask",
    "SemanticTask",
]
