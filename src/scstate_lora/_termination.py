"""SIGTERM, by which schedulers, `make` and workflow engines end a process: an exception with their exit status."""

from __future__ import annotations

import signal
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from collections.abc import Iterator

EXIT_STATUS = 128 + signal.SIGTERM  # as shells report it


class Terminated(SystemExit):
    """The process received SIGTERM.

    A SystemExit, so that a script ends with status 143 and no ``except Exception`` continues it.

    Parameters
    ----------
    message
        How to continue.
    """

    def __init__(self, message: str = "Stopped by SIGTERM.") -> None:
        super().__init__(message)
        self.code = int(EXIT_STATUS)


def raise_terminated(_number: int, _frame: Any) -> NoReturn:
    """Raise the exception: a signal handler."""
    raise Terminated


@contextmanager
def sigterm_raises() -> Iterator[None]:
    """Within this context SIGTERM raises :class:`Terminated`, unless another handler decides already."""
    is_main = threading.current_thread() is threading.main_thread()
    if not is_main or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    before = signal.signal(signal.SIGTERM, raise_terminated)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
