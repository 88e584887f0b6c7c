"""The main job in one call, into one folder: set up, train, embed, predict, evaluate; or a part of it."""

from __future__ import annotations

from scstate_lora.workflow.annotation import FileLabels, label_file, save_classifier, train_classifier
from scstate_lora.workflow.evaluation import Evaluated, evaluate_cells, evaluate_embeddings
from scstate_lora.workflow.folder import is_first_process
from scstate_lora.workflow.main_job import Run, run
from scstate_lora.workflow.one_model import Trained, train
from scstate_lora.workflow.prediction import predict_to_file
from scstate_lora.workflow.repetition import Replay, replay
from scstate_lora.workflow.results_file import Results

__all__ = [
    "Evaluated",
    "FileLabels",
    "Replay",
    "Results",
    "Run",
    "Trained",
    "evaluate_cells",
    "evaluate_embeddings",
    "is_first_process",
    "label_file",
    "predict_to_file",
    "replay",
    "run",
    "save_classifier",
    "train",
    "train_classifier",
]
