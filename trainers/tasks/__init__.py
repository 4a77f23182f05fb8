"""What is trained and how: one LightningModule per kind of training."""

from trainers.tasks.adaptive import AdaptiveTask
from trainers.tasks.alignment import AlignmentTask
from trainers.tasks.class_token import ClassTokenTask
from trainers.tasks.codec import CodecTask
from trainers.tasks.contrastive import ContrastiveTask
from trainers.tasks.dictionary import DictionaryTask
from trainers.tasks.feature_maps import FeatureMapTask
from trainers.tasks.inversion import DistillationTask, ISATask, LinCIRTask, Pic2WordTask, RTDTask
from trainers.tasks.latent import LatentTask
from trainers.tasks.personalisation import PersonalisationTask
from trainers.tasks.prediction import HaltingTask, ProxyTask, RollOutTask
from trainers.tasks.projection import ProjectionTask
from trainers.tasks.queries import QueryCodeTask, QueryTask
from trainers.tasks.reconstruction import ReconstructionTask
from trainers.tasks.semantic import SemanticTask
from trainers.tasks.sensors import SensorTask
from trainers.tasks.token_offsets import TokenVerseTask

__all__ = [
    "AdaptiveTask",
    "AlignmentTask",
    "ClassTokenTask",
    "CodecTask",
    "ContrastiveTask",
    "DictionaryTask",
    "DistillationTask",
    "FeatureMapTask",
    "HaltingTask",
    "ISATask",
    "LatentTask",
    "LinCIRTask",
    "PersonalisationTask",
    "Pic2WordTask",
    "ProjectionTask",
    "ProxyTask",
    "QueryCodeTask",
    "QueryTask",
    "RTDTask",
    "ReconstructionTask",
    "RollOutTask",
    "SemanticTask",
    "SensorTask",
    "TokenVerseTask",
]
