"""Data modules: what feeds the tasks."""

from trainers.data.audio import AudioFolderData
from trainers.data.images import ImageData

ImageFolderData = ImageData  # its first name, by which recipes know it

__all__ = ["AudioFolderData", "ImageData", "ImageFolderData"]
