"""`results.json`: what was computed with which options, files and versions, and all tables, in strict JSON."""

from __future__ import annotations

import hashlib
import json
import platform
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import numpy as np
import pandas as pd
from pandas.api import types as pdt
from threadpoolctl import threadpool_info

from scstate_lora.data import Registry
from scstate_lora.data.bound import BoundData
from scstate_lora.data.model_split import ModelSplit
from scstate_lora.data.results import SPLIT, read_result
from scstate_lora.data.split_column import SPLITS
from scstate_lora.io.atomic import in_place

if TYPE_CHECKING:
    from collections.abc import Mapping

    from anndata import AnnData

    from scstate_lora.config import CompareRunConfig, RunConfig
    from scstate_lora.tl import Comparison
    from scstate_lora.workflow.folder import ResultsFolder

FILE_NAME = "results.json"
FORMAT = "scstate_lora results"
FORMAT_VERSION = 1
TOLERANCE = 1e-6
"""Numbers that differ by less, or by less of the recorded one, are the same."""

# What the numbers are computed with.
_PACKAGES = (
    *("scstate-lora", "anndata", "h5py", "lightning", "numba", "numpy", "pandas", "peft", "pynndescent", "scanpy"),
    *("scib-metrics", "scikit-learn", "scipy", "torch", "transformers"),
)
# Text that describes a row, and does not say which row it is.
_DESCRIBING = {"direction", "fix", "reason", "severity", "skill_reason", "yardstick"}
_PARTS = ("command", "settings", "files", "split", "versions", "tables")


@dataclass(frozen=True)
class Results:
    """Content of a file of results.

    Parameters
    ----------
    command
        The command that computed them: ``"run"``, ``"train"``, ``"annotate train"``, ``"compare"``, ``"evaluate"`` or
        ``"evaluate-embeddings"``.
    settings
        All its options, seeds among them.
    files
        Its files by their role, each as :func:`describe_file` describes it.
    versions
        Versions of the packages, and the number of threads, see :func:`package_versions`.
    tables
        The tables, by name.
    split
        Source, fingerprint and sizes of the split into training, validation and test cells; empty without one.
    """

    command: str
    settings: dict[str, Any]
    files: dict[str, dict[str, Any]]
    versions: dict[str, str]
    tables: dict[str, pd.DataFrame]
    split: dict[str, Any]

    def write(self, path: Path) -> None:
        """Write the file, completely or not at all.

        Raises
        ------
        OSError
            If writing fails; an earlier file is unchanged.
        TypeError, ValueError
            As :meth:`text`.
        """
        text = self.text()
        with in_place(path) as temporary:
            temporary.write_text(text, encoding="utf-8")

    def text(self) -> str:
        """Content of the file: one line per row of a table, equal bytes for equal results.

        Numbers are written with all their digits. A missing value is ``null``, and infinity, which JSON lacks, the text
        ``"inf"`` or ``"-inf"``.

        Raises
        ------
        TypeError, ValueError
            If a setting is no JSON.
        """
        head = {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            **{name: getattr(self, name) for name in _PARTS[:-1]},
        }
        tables = ",\n".join(f"  {json.dumps(name)}: {_table_text(table)}" for name, table in self.tables.items())
        text = json.dumps(head, indent=1, allow_nan=False, ensure_ascii=False).removesuffix("\n}")
        return f'{text},\n "tables": {{\n{tables}\n }}\n}}\n'

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a file of results.

        Raises
        ------
        FileNotFoundError
            If there is none.
        ValueError
            If it is another file, damaged, or of a format version that this version of the package does not read.
        """
        if not path.is_file():
            msg = f"There is no file {path}. Name the {FILE_NAME} that scstate-lora evaluate or run has written."
            raise FileNotFoundError(msg)
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            msg = f"{path} is not JSON, or damaged: {error}."
            raise ValueError(msg) from error
        if not isinstance(content, dict) or content.get("format") != FORMAT:
            msg = f"{path} holds no results of scstate_lora: its 'format' is not {FORMAT!r}."
            raise ValueError(msg)
        found = content.get("format_version")
        if found != FORMAT_VERSION:
            msg = (
                f"{path}: its format version is {found}, and this version of scstate_lora, {version('scstate-lora')}, "
                f"reads version {FORMAT_VERSION}. Read it with the version that wrote it."
            )
            raise ValueError(msg)
        missing = [name for name in _PARTS if name not in content]
        if missing:
            msg = f"{path} is damaged: it lacks {missing[0]!r}."
            raise ValueError(msg)
        tables = {name: _table(stored) for name, stored in content["tables"].items()}
        return cls(**{name: content[name] for name in _PARTS[:-1]}, tables=tables)


def write_run_results(place: ResultsFolder, config: RunConfig, adata: AnnData, *, command: str = "run") -> None:
    """Write the results of a run, or of its training alone, into its folder.

    Parameters
    ----------
    place
        Folder of the run, with its cells and predictions.
    config
        Options of the run.
    adata
        The cells, with registry and split.
    command
        ``"run"`` or ``"train"``.
    """
    files = {"pred": place.path / "predictions.h5ad", "real": place.path / "adata.h5ad"}
    _write_trained(place.path, command, config, files, adata, place.tables)


def write_comparison_results(
    folder: Path, config: CompareRunConfig, file: Path, adata: AnnData, comparison: Comparison
) -> None:
    """Write the results of a comparison of variants into its folder.

    Parameters
    ----------
    folder
        Folder of the comparison.
    config, file
        Its options, and the file of its cells.
    adata
        The cells, with registry and split.
    comparison
        Its tables.
    """
    config = config.model_copy(update={"file": str(file)})
    _write_trained(folder, "compare", config, {}, adata, comparison.tables())


def _write_trained(
    folder: Path,
    command: str,
    config: RunConfig,
    files: dict[str, Path],
    adata: AnnData,
    tables: dict[str, pd.DataFrame],
) -> None:
    """Write results of what was trained, with the files that exist."""
    if config.file is not None:
        files["input"] = Path(config.file)
    if config.st is not None and config.st.pert_features is not None:
        files["pert_features"] = Path(config.st.pert_features)
    present = {role: path.expanduser() for role, path in files.items() if path.expanduser().is_file()}
    split = ModelSplit.of(BoundData(Registry.from_adata(adata), adata))
    Results(
        command=command,
        settings=config.model_dump(mode="json"),
        files={role: describe_file(path, folder) for role, path in present.items()},
        split=split_record(split, str(read_result(adata, SPLIT)["source"])),
        versions=package_versions(),
        tables=tables,
    ).write(folder / FILE_NAME)


def split_record(split: ModelSplit, source: str) -> dict[str, Any]:
    """Describe a split: where it comes from, its fingerprint (:class:`ModelSplit`), and the sizes of its parts."""
    sizes = np.bincount(split.splits, minlength=len(SPLITS))
    counts = {name: int(size) for name, size in zip(SPLITS, sizes, strict=True)}
    return {"source": source, "fingerprint": split.fingerprint, **counts}


def describe_file(path: Path, folder: Path) -> dict[str, Any]:
    """Describe a file by where it is and what it holds.

    Parameters
    ----------
    path
        The file.
    folder
        Folder of the results.

    Returns
    -------
    ``path``, relative to `folder` if it lies there, else absolute; ``bytes``, its size; ``sha256`` of its content.
    """
    path, folder = path.expanduser().resolve(), folder.resolve()
    with path.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    shown = path.relative_to(folder).as_posix() if path.is_relative_to(folder) else str(path)
    return {"path": shown, "bytes": path.stat().st_size, "sha256": digest}


def package_versions() -> dict[str, str]:
    """Versions of Python and of the packages that compute, the kind of machine, and how many threads share a sum.

    Sums in another order differ in the last digits, and in more of them where a skill is the ratio of two tiny numbers.
    """
    threads = max((pool["num_threads"] for pool in threadpool_info()), default=1)
    found = {
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}",
        "threads": str(threads),
    }
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


class Difference(NamedTuple):
    """How tables differ from recorded ones."""

    same: int
    """Number of recorded numbers that are the same now, missing ones not counted."""
    different: pd.DataFrame
    """Numbers that differ: ``table``, ``row`` in words, ``column``, ``recorded``, ``now``; first those of which one is
    missing, then the largest differences."""
    absent: list[str]
    """Recorded tables, columns and rows that do not exist now."""
    new: int
    """Number of numbers that were not recorded."""

    @property
    def is_same(self) -> bool:
        """Whether every recorded number is the same."""
        return self.different.empty and not self.absent


def compare(recorded: Mapping[str, pd.DataFrame], now: Mapping[str, pd.DataFrame]) -> Difference:
    """Compare all numbers of tables, row by row.

    Rows are known by their text, of columns that do not just describe them. Numbers are the same if they differ by at
    most 1e-6, or 1e-6 of the recorded one; equal infinities are the same, and so are two missing values.

    Parameters
    ----------
    recorded, now
        Tables by name.
    """
    absent = [name for name in recorded if name not in now]
    same, n_new, parts = 0, 0, [pd.DataFrame(columns=["table", "row", "column", "recorded", "now"])]
    for name in [name for name in recorded if name in now]:
        keys = [key for key in _naming(recorded[name]) if key in now[name]]
        before, after = _numbers(recorded[name], keys), _numbers(now[name], keys)
        rows, columns = before.index.intersection(after.index), before.columns.intersection(after.columns)
        absent += [f"{name}: {row}" for row in before.index.difference(after.index, sort=False)]
        absent += [f"{name}: column {column}" for column in before.columns.difference(after.columns, sort=False)]
        n_new += after.size - len(rows) * len(columns)
        one, other = (side.loc[rows, columns].to_numpy() for side in (before, after))
        is_same = np.isclose(other, one, rtol=TOLERANCE, atol=TOLERANCE, equal_nan=True)
        same += int((is_same & ~np.isnan(one)).sum())
        where = np.argwhere(~is_same)
        places = {"row": rows[where[:, 0]], "column": columns[where[:, 1]]}
        parts.append(pd.DataFrame({"table": name, **places, "recorded": one[~is_same], "now": other[~is_same]}))
    found = [part for part in parts if len(part)]
    different = pd.concat(found) if found else parts[0]
    if found:
        size = (different["recorded"] - different["now"]).abs().fillna(np.inf).to_numpy()
        different = different.iloc[np.argsort(-size, kind="stable")]
    return Difference(same, different.reset_index(drop=True), absent, n_new)


def _naming(table: pd.DataFrame) -> list[str]:
    """Columns that say which row is which."""
    return [str(c) for c in table if c not in _DESCRIBING and _type(table[c]) == "text"]


def _numbers(table: pd.DataFrame, keys: list[str]) -> pd.DataFrame:
    """Take the columns of numbers, ``float64``, with the other text of a row as its name; numbered if several agree."""
    names = pd.Series([", ".join(map(str, row)) for row in table[keys].to_numpy(dtype=object)], dtype=object)
    repeated = names.groupby(names).cumcount()
    names = names.where(repeated == 0, names + " (" + (repeated + 1).astype(str) + ")")
    columns = [column for column in table if _type(table[column]) in ("number", "integer")]
    return table[columns].astype(np.float64).set_axis(pd.Index(names, dtype=object))


def _type(column: pd.Series) -> str:
    """Type of a column as a file of results names it."""
    if pdt.is_bool_dtype(column):
        return "boolean"
    if pdt.is_integer_dtype(column):
        return "integer"
    return "number" if pdt.is_float_dtype(column) else "text"


def _table_text(table: pd.DataFrame) -> str:
    """Write a table as JSON: names and types of its columns, then one line per row."""
    types = {str(name): _type(table[name]) for name in table}
    columns = _json([{"name": name, "type": kind} for name, kind in types.items()])
    values = [_WRITTEN[kind](table[name]) for name, kind in zip(table, types.values(), strict=True)]
    rows = ",\n".join(f"    {_json(row)}" for row in zip(*values, strict=True))
    inner = f'{{\n   "columns": {columns},\n   "rows": ['
    return f"{inner}\n{rows}\n   ]\n  }}" if rows else f"{inner}]\n  }}"


def _json(value: Any) -> str:
    return json.dumps(value, allow_nan=False, ensure_ascii=False)


def _written_numbers(column: pd.Series) -> list[float | str | None]:
    values = column.to_numpy(dtype=np.float64)
    return [None if np.isnan(v) else float(v) if np.isfinite(v) else str(v) for v in values]


_WRITTEN: dict[str, Any] = {
    "boolean": lambda column: [bool(value) for value in column],
    "integer": lambda column: [int(value) for value in column],
    "number": _written_numbers,
    "text": lambda column: [None if pd.isna(value) else str(value) for value in column],
}
"""Values of a column in JSON, by its type."""


def _table(stored: Mapping[str, Any]) -> pd.DataFrame:
    """Read a table of :func:`_table_text`."""
    values = list(zip(*stored["rows"], strict=True)) or [()] * len(stored["columns"])
    columns = {}
    for column, content in zip(stored["columns"], values, strict=True):
        if column["type"] == "number":
            content = tuple(np.nan if value is None else float(value) for value in content)
        dtype = {"number": np.float64, "integer": np.int64, "boolean": np.bool_}.get(column["type"], object)
        columns[column["name"]] = pd.Series(list(content), dtype=dtype)
    return pd.DataFrame(columns)
