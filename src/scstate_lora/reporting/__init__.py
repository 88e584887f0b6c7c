"""One self-contained HTML page with the tables, plots and plain-words verdicts of a run."""

from __future__ import annotations

from scstate_lora.reporting.page import begin_report, experiment_sections, report, write_page

__all__ = ["begin_report", "experiment_sections", "report", "write_page"]
