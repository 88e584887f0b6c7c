"""What the supported versions of libraries do differently, each with the versions that need it; torch has its own."""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from contextlib import AbstractContextManager
    from pathlib import Path

    import pandas as pd


def open_zarr(path: Path, mode: str) -> Any:
    """Open a zarr store as a group, by what it holds rather than by its summary, which later additions outdate."""
    import zarr

    # zarr 2 reads a summary only where open_consolidated asks for it, and does not know the option.
    options = {} if zarr.__version__.startswith("2.") else {"use_consolidated": False}
    return zarr.open_group(str(path), mode=mode, **options)


def zarr_path(stored: Any) -> str:
    """Path of a zarr array or group."""
    return str(stored.store_path) if hasattr(stored, "store_path") else f"{stored.store.path}/{stored.path}"  # zarr 2


def mudata_without_pull() -> AbstractContextManager[Any]:
    """Within this context a MuData copies no columns from its modalities, as from mudata 0.4 on by default."""
    import mudata

    return mudata.set_options(pull_on_update=False) if hasattr(mudata, "set_options") else nullcontext()


def http_error() -> type[Exception]:
    """Return the base of the errors that huggingface_hub raises when the Hub refuses or cannot be reached."""
    import huggingface_hub

    if huggingface_hub.__version__.startswith("0."):  # built on requests; later ones on httpx
        from requests import RequestException

        return RequestException
    from huggingface_hub.errors import HTTPError

    return HTTPError


def safe_resume() -> dict[str, bool]:
    """Options of ``Trainer.fit`` for a checkpoint that must hold no code; before Lightning 2.6 there are none."""
    import lightning as L

    return {} if L.__version__.startswith("2.5.") else {"weights_only": True}


def read_csv(path: Path) -> pd.DataFrame:
    """Read a table with every number exactly as it was written."""
    import pandas as pd

    # pandas 3.1 does so by default, and deprecates the option.
    exactly: dict[str, Any] = (
        {} if tuple(map(int, pd.__version__.split(".")[:2])) >= (3, 1) else {"float_precision": "round_trip"}
    )
    return pd.read_csv(path, **exactly)
