"""Example data: a wound and a screen simulated with known truth, and real cells that ship with scanpy."""

from __future__ import annotations

from scstate_lora.datasets.real import pbmc68k
from scstate_lora.datasets.screen import perturbation_screen, perturbation_screen_truth
from scstate_lora.datasets.wound import wound_healing, wound_healing_truth

__all__ = ["pbmc68k", "perturbation_screen", "perturbation_screen_truth", "wound_healing", "wound_healing_truth"]
