"""One self-contained HTML page with the tables, plots and plain-words verdicts of a run."""

from __future__ import annotations

import sys
import types
from typing import Any

from scstate_lora.report._page import report

__all__ = ["report"]


class _CallableModule(types.ModuleType):
    """Lets ``scstate_lora.report(...)`` work after this sub-package was imported and took the function's name."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return report(*args, **kwargs)


sys.modules[__name__].__class__ = _CallableModule
