"""Data modules: what feeds the tasks."""

from trainers.data.audio import AudioFolderData
from trainers.data.captions import CaptionData, TripletData
from trainers.data.features import ImageFeatureData, InvertedImageData
from trainers.data.images import ImageData
from trainers.data.noise import NoiseData
from trainers.data.rows import CodedImageData, ConceptData, GarmentData
from trainers.data.sensors import SensorData
from trainers.data.videos import VideoData

__all__ = [
    "AudioFolderData",
    "CaptionData",
    "CodedImageData",
    "ConceptData",
    "GarmentData",
    "ImageData",
    "ImageFeatureData",
    "InvertedImageData",
    "NoiseData",
    "SensorData",
    "TripletData",
    "VideoData",
]
