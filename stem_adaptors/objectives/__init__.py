"""What can be learned from tokens. Each objective is one class behind the seam in base.py."""

from tokenshards.stem_adaptors.objectives.base import Blueprint, Objective
from tokenshards.stem_adaptors.objectives.classify import ClassifyObjective
from tokenshards.stem_adaptors.objectives.masked_tokens import MaskedTokenObjective
from tokenshards.stem_adaptors.objectives.segment import SegmentObjective

__all__ = ["OBJECTIVES", "Blueprint", "Objective"]

OBJECTIVES: dict[str, type[Objective]] = {"classify": ClassifyObjective, "mtm": MaskedTokenObjective, "segment": SegmentObjective}
"""The objectives by the name that run.json gives."""
