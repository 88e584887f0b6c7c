"""The main job in one call: set up, train, embed, predict, evaluate, and leave it all in a folder; or a part of it."""

from __future__ import annotations

from scstate_lora.workflow._folder import is_first_process
from scstate_lora.workflow._predict import predict_to_file
from scstate_lora.workflow._run import Run, run
from scstate_lora.workflow._train import Trained, train

__all__ = ["Run", "Trained", "is_first_process", "predict_to_file", "run", "train"]
