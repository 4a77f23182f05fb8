"""Data modules: what feeds the tasks."""

from trainers.data.images import ImageFolderData

__all__ = ["ImageFolderData"]
