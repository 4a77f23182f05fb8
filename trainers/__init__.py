"""Training of the zoo's models with Lightning: tasks, data, callbacks and one YAML per recipe.

task = trainers.create_task("compact_f8", recipe="photos")
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trainers.recipes import create_task

__all__ = ["create_task"]


def __getattr__(name: str) -> Any:
    if name == "create_task":
        from trainers.recipes import create_task

        return create_task
    raise AttributeError(f"module 'trainers' has no attribute {name!r}")
