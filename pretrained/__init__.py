"""Checkpoints: reading and writing them, one file per format."""

from __future__ import annotations

from dsrl.pretrained.native import describe, load_policy, save_policy

__all__ = ["describe", "load_policy", "save_policy"]
