"""Scripted operators: the source of demonstrations, calibrated or not."""

from dsrl.wrappers.experts.base import Expert
from dsrl.wrappers.experts.factory import make_expert

__all__ = ["Expert", "make_expert"]
