"""Data modules: what feeds the tasks."""

from trainers.data.audio import AudioFolderData
from trainers.data.captions import CaptionData, TripletData
from trainers.data.features import ImageFeatureData, InvertedImageData
from trainers.data.images import ImageData

ImageFolderData = ImageData  # its first name, by which recipes know it

__all__ = [
    "AudioFolderData",
    "CaptionData",
    "ImageData",
    "ImageFeatureData",
    "ImageFolderData",
    "InvertedImageData",
    "TripletData",
]
