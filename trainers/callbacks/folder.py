"""Where a run logs, for callbacks that work in one process alone."""

from __future__ import annotations

from pathlib import Path

import lightning.pytorch as lightning


def log_folder(trainer: lightning.Trainer) -> Path:
    """The folder of the first logger that has one, or the Trainer's root.

    `Trainer.log_dir` is a message to all processes: one that asks for it alone waits for ever, or takes the next one's.
    """
    for logger in trainer.loggers:
        folder = getattr(logger, "log_dir", None) or logger.save_dir
        if folder is not None:
            return Path(folder)
    return Path(trainer.default_root_dir)
