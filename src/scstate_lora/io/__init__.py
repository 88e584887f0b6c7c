"""Models on disk: our directories of JSON and safetensors, and published checkpoints."""

from __future__ import annotations

from scstate_lora.io.published.se_tensors import from_arc_names, to_arc_names
from scstate_lora.io.save_load import FORMAT_VERSION, check_state, load_directory, save_directory

__all__ = ["FORMAT_VERSION", "check_state", "from_arc_names", "load_directory", "save_directory", "to_arc_names"]
