"""Read the table of perturbation features: numbers, one row per perturbation."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from scstate_lora._utils import did_you_mean

_SEPARATORS = {".csv": ",", ".tsv": "\t"}
_PARQUET = ".parquet"
FORMATS = (*(f"{ending}{packed}" for ending in _SEPARATORS for packed in ("", ".gz")), _PARQUET)
"""Endings of files that a table can be read from."""


def read_features(path: str | Path) -> pd.DataFrame:
    """Read a table of numbers, indexed by the names in its first column.

    Parameters
    ----------
    path
        A file in one of ``FORMATS``; the columns of a text file have names.

    Returns
    -------
    ``(n_perturbations, n_features)``, indexed by name; a name such as ``NA`` or ``10`` is text.

    Raises
    ------
    FileNotFoundError
        If there is no such file; near names are suggested.
    ValueError
        If the file is of another kind, damaged or empty, has a name twice or a column that is not numeric; or is
        parquet and no reader for that is installed.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        present = [file.name for file in sorted(path.parent.glob("*")) if file.name.endswith(FORMATS)]
        msg = f"pert_features: there is no file {path}." + (f" {did_you_mean(path.name, present)}" if present else "")
        raise FileNotFoundError(msg)
    if not path.name.endswith(FORMATS):
        msg = f"pert_features: {path} is of another kind; it must end in {', '.join(FORMATS[:-1])} or {FORMATS[-1]}."
        raise ValueError(msg)
    try:
        table = _read_parquet(path) if path.suffix == _PARQUET else _read_text(path)
    except ImportError as error:
        msg = f"pert_features: {path} cannot be read without pyarrow: pip install pyarrow, or save it as .csv."
        raise ValueError(msg) from error
    except (ValueError, OSError, EOFError) as error:
        msg = f"pert_features: {path} cannot be read: {str(error).splitlines()[0]}"
        raise ValueError(msg) from error
    _check(table, path)
    return table


def _read_text(path: Path) -> pd.DataFrame:
    separator = _SEPARATORS[Path(path.name.removesuffix(".gz")).suffix]
    header = list(pd.read_csv(path, sep=separator, nrows=0).columns)
    table = pd.read_csv(path, sep=separator, header=None, skiprows=1, index_col=0)
    # Names are read as text, so that a perturbation named NA is not a missing value.
    names = pd.read_csv(path, sep=separator, header=None, skiprows=1, usecols=[0], dtype=str, keep_default_na=False)
    table.index = pd.Index(names[0])
    if table.shape[1] not in (len(header) - 1, len(header)):  # R omits the heading of the names
        msg = f"the first line has {len(header)} columns, the others have {table.shape[1] + 1}."
        raise ValueError(msg)
    return table.set_axis(header[-table.shape[1] :] if table.shape[1] else [], axis=1).rename_axis(None)


def _read_parquet(path: Path) -> pd.DataFrame:
    table = pd.read_parquet(path)
    if isinstance(table.index, pd.RangeIndex) and table.shape[1]:
        table = table.set_index(table.columns[0])
    return table.set_axis(table.index.astype(str))


def _check(table: pd.DataFrame, path: Path) -> None:
    if not table.size:
        msg = (
            f"pert_features: {path} has {len(table)} rows and {table.shape[1]} columns besides the names. The first "
            "column names the perturbations, the others describe them."
        )
        raise ValueError(msg)
    if table.index.has_duplicates:
        name = table.index[table.index.duplicated()][0]
        msg = f"pert_features: {path} has {name!r} in several rows. Keep one row per perturbation."
        raise ValueError(msg)
    for column in table.columns:
        if not pd.api.types.is_numeric_dtype(table[column]):
            text = pd.to_numeric(table[column], errors="coerce").isna() & table[column].notna()
            example = f", for instance {table[column][text].iloc[0]!r}" if text.any() else ""
            msg = f"pert_features: {path}: the column {str(column)!r} holds values that are not numbers{example}."
            raise ValueError(msg)
