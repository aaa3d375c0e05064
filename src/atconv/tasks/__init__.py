"""The tasks, and what is the same for all of them: train, resume, load.

>>> from atconv.tasks import train
>>> from atconv.tasks.classification import ClassificationConfig
>>> run = train(ClassificationConfig(data="digits", model="attnet_xxs"), "runs/digits")
"""

from atconv.tasks.registry import TASKS, get_task, load, open_run, task_for, task_of
from atconv.tasks.spec import TaskSpec
from atconv.tasks.training import resume, train, train_or_resume

__all__ = [
    "TASKS",
    "TaskSpec",
    "get_task",
    "load",
    "open_run",
    "resume",
    "task_for",
    "task_of",
    "train",
    "train_or_resume",
]
