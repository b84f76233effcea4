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

LOG = logging.getLogger("posttrain.serve")


@dataclass(frozen=True, slots=True)
class Service:
    backend: Backend
    limits: Limits
    desk: Desk
    admission: Admission
    metrics: Metrics
    logs_prompts: bool
    started_at: int = field(default_factory=lambda: int(time.time()))

    @classmethod
    def over(cls, backend: Backend, limits: Limits, *, logs_prompts: bool) -> Service:
        admission = Admission(rows=limits.rows, queue=limits.queue)
        return cls(
            backend, limits, Desk(backend, limits), admission, Metrics(backend, admission), logs_prompts=logs_prompts
        )
