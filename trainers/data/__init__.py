"""Data modules: what feeds the tasks."""

from trainers.data.images import ImageData

ImageFolderData = ImageData  # its first name, by which recipes know it

__all__ = ["ImageData", "ImageFolderData"]
