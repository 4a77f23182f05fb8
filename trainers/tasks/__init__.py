"""What is trained and how: one LightningModule per kind of training."""

from trainers.tasks.codec import CodecTask
from trainers.tasks.reconstruction import ReconstructionTask

__all__ = ["CodecTask", "ReconstructionTask"]
