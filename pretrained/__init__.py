"""Checkpoints: reading and writing them, one file per format."""

from __future__ import annotations

from pathlib import Path

from dsrl.pretrained.convert import convert
from dsrl.pretrained.loading import is_checkpoint, load_policy, spelled
from dsrl.pretrained.native import save_policy
from dsrl.pretrained.summary import describe

DEFAULT_CHECKPOINT = Path(__file__).with_name("checkpoints") / "lift.pt"
"""the small imperfect policy for robosuite's Lift that ships with the package"""

__all__ = ["DEFAULT_CHECKPOINT", "convert", "describe", "is_checkpoint", "load_policy", "save_policy", "spelled"]
