"""Multiple-choice questions: how they are asked, scored, controlled and summed up."""

from spatialvlm.evaluation.asking.extraction import extract_choice

__all__ = ["extract_choice"]
