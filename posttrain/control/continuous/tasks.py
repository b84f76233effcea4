"""Tasks by name."""

from __future__ import annotations

import re

from posttrain.control.continuous.dm_control_task import DmControlTask
from posttrain.control.continuous.environment import Environment
from posttrain.control.continuous.gymnasium_task import GymnasiumTask


def make_environment(task: str) -> Environment:
    """`Pendulum-v1`, an id of gymnasium, or `cartpole-swingup`, domain and task of the control suite.

    Raises ValueError for a name of neither form or a task that does not exist, ImportError without its package.
    """
    if re.search(r"-v\d+$", task):
        return GymnasiumTask.make(task)
    domain, dash, name = task.partition("-")
    if not dash:
        raise ValueError(
            f"task is {task!r}, needed domain-task of the control suite or a gymnasium id such as Pendulum-v1"
        )
    return DmControlTask(domain, name)
