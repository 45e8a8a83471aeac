"""Measure whether the data loader keeps up with training: images per second of each alone.

Accepts all settings of `sap-detr train`; measures `--max-steps N` training steps (5 by default). Writes no files.
"""

from dataclasses import dataclass

from .train import TrainingSettings


@dataclass
class TimeTrainingSettings(TrainingSettings):
    """Settings of `sap-detr time-training`: those of training."""
