"""The package's logger, which reports every decision made about the user's data."""

from __future__ import annotations

import logging
import sys


class _Stderr(logging.StreamHandler):
    """Write to the current ``sys.stderr``, which notebooks and tests replace."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)

    @property
    def stream(self):  # type: ignore[no-untyped-def]  # the base class has an attribute of type Any here
        return sys.stderr


def _make() -> logging.Logger:
    package_logger = logging.getLogger("scstate_lora")
    if package_logger.level == logging.NOTSET:  # the user may already have set one
        package_logger.setLevel(logging.INFO)
    if not package_logger.handlers:
        handler = _Stderr()
        handler.setFormatter(logging.Formatter("%(message)s"))
        package_logger.addHandler(handler)
        package_logger.propagate = False
    return package_logger


logger = _make()
"""``logging.getLogger("scstate_lora")``; raise its level to silence the package."""
