"""The tasks by name."""

from __future__ import annotations

from ..errors import UsageError
from .classification_task import ClassificationTask
from .detection import DetectionTask
from .segmenting import SegmentationTask
from .task import Task

_TASKS: dict[str, Task] = {task.name: task for task in (SegmentationTask(), DetectionTask(), ClassificationTask())}


def task_named(name: str) -> Task:
    """Return a task.

    Raises:
        UsageError: there is none of that name.
    """
    if name not in _TASKS:
        raise UsageError(f"there is no task {name!r}", fix=f"use {', '.join(_TASKS)}")
    return _TASKS[name]
