"""Measure whether the loader keeps up with training: images a second of each alone.

Takes all settings of `sap-detr train`; `--max-steps N` training steps count (5 by default). Nothing is written.
"""

from dataclasses import dataclass

from .train import TrainingSettings


@dataclass
class TimeTrainingSettings(TrainingSettings):
    """The settings of the run that is measured."""
