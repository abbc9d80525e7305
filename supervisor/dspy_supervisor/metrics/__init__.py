"""The metrics of a supervisor in Prometheus' terms: one table of names, help, units and labels, and what is made of it.

Names begin with ``dspy_supervisor_``, units are base units, counters end in ``_total``. Labels have few values: class,
outcome, cause, reason, state, command, service, status, and a GPU's UUID; never a task. Counters count since the
supervisor's start. What is not known, as a number that a GPU does not tell, has no sample. All is read from the shared page
and from what `status` says at the moment of a scrape, so there is no series of a worker, and none of one that is gone.
"""

from .exposition import Answer, Exposition
from .table import METRICS
from .view import Metric, View

__all__ = ["METRICS", "Answer", "Exposition", "Metric", "View"]
