"""What can be learned from tokens. Each objective is one class behind the seam in base.py."""

from tokenshards.stem_adaptors.objectives.base import Blueprint, Objective
from tokenshards.stem_adaptors.objectives.classify import ClassifyObjective

__all__ = ["OBJECTIVES", "Blueprint", "Objective"]

OBJECTIVES: dict[str, type[Objective]] = {"classify": ClassifyObjective}
"""The objectives by the name that run.json gives."""
