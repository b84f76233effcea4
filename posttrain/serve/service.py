"""What the routes share."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, field

from posttrain.serve.admission import Admission
from posttrain.serve.asked import Desk
from posttrain.serve.backend import Backend
from posttrain.serve.limits import Limits
from posttrain.serve.metrics import Metrics
from posttrain.serve.value_units import UNKNOWN, ValueUnits

LOG = logging.getLogger("posttrain.serve")


@dataclass(frozen=True, slots=True)
class Service:
    backend: Backend
    limits: Limits
    desk: Desk
    admission: Admission
    metrics: Metrics
    logs_prompts: bool
    units: ValueUnits  # of the value model
    started_at: int = field(default_factory=lambda: int(time.time()))

    @classmethod
    def over(cls, backend: Backend, limits: Limits, *, logs_prompts: bool, units: ValueUnits = UNKNOWN) -> Service:
        admission = Admission(rows=limits.rows, queue=limits.queue)
        desk, metrics = Desk(backend, limits), Metrics(backend, admission)
        return cls(backend, limits, desk, admission, metrics, logs_prompts=logs_prompts, units=units)
