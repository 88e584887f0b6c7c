"""Preprocessing: RNA velocity."""

from __future__ import annotations

from scstate_lora.pp.rna_velocity import velocity

__all__ = ["velocity"]
