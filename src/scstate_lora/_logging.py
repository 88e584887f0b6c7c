"""The package's logger: what is decided about the user's data is said out loud."""

from __future__ import annotations

import logging
import sys


class _Stderr(logging.StreamHandler):
    """Write to whatever ``sys.stderr`` is at the moment, which notebooks and tests replace."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)

    @property
    def stream(self):  # type: ignore[no-untyped-def]  # the base class has an attribute of type Any here
        return sys.stderr


def _make() -> logging.Logger:
    made = logging.getLogger("scstate_lora")
    if made.level == logging.NOTSET:  # the user may have set one before
        made.setLevel(logging.INFO)
    if not made.handlers:
        handler = _Stderr()
        handler.setFormatter(logging.Formatter("%(message)s"))
        made.addHandler(handler)
        made.propagate = False
    return made


logger = _make()
"""``logging.getLogger("scstate_lora")``; raise its level to silence the package."""
