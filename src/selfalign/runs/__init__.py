"""The run directory: what is done, what is not, and why; nothing else decides that."""

from selfalign.runs.artifact import Artifact, Stage
from selfalign.runs.run import Run
from selfalign.runs.work import Work

__all__ = ["Artifact", "Run", "Stage", "Work"]
