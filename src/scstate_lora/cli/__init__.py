"""The command line: the main job on a file, its parts alone, and looking into checkpoints."""

from __future__ import annotations

from scstate_lora.cli.application import app, main

__all__ = ["app", "main"]
