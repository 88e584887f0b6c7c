"""One self-contained HTML page of a run: what was asked and found, whether to believe it, and all details."""

from __future__ import annotations

from scstate_lora.reporting.page import begin_report, experiment, report, write_page

__all__ = ["begin_report", "experiment", "report", "write_page"]
