"""Data modules: what feeds the tasks."""

from trainers.data.audio import AudioFolderData
from trainers.data.captions import CaptionData, TripletData
from trainers.data.features import ImageFeatureData, InvertedImageData
from trainers.data.images import ImageData

__all__ = [
    "AudioFolderData",
    "CaptionData",
    "ImageData",
    "ImageFeatureData",
    "InvertedImageData",
    "TripletData",
]
