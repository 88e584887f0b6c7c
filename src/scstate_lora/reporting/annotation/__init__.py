"""What the page tells of labelled cells: which labels can be believed, which types are confused, what was rejected."""

from __future__ import annotations

from scstate_lora.reporting.annotation.page_parts import add_annotation, annotation_experiment, is_classifier

__all__ = ["add_annotation", "annotation_experiment", "is_classifier"]
