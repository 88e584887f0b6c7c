"""Train a classifier of cells from options, and label the cells of a file with one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from scstate_lora._constants import UNS_KEY
from scstate_lora._utils import did_you_mean
from scstate_lora.config import to_yaml
from scstate_lora.data.bound import BoundData
from scstate_lora.data.model_split import ModelSplit
from scstate_lora.data.register import register
from scstate_lora.data.results import ANNOTATE, SPLIT, as_uns, read_result
from scstate_lora.data.stream import open_cells
from scstate_lora.io.cells_file import write_columns
from scstate_lora.io.save_load import add_texts
from scstate_lora.model.annotation.celltype_classifier import LABEL, CellTypeClassifier
from scstate_lora.workflow.results_file import FILE_NAME, Results, describe_file, package_versions, split_record

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd
    from anndata import AnnData
    from mudata import MuData

    from scstate_lora.config import AnnotateConfig

TABLES = ("scores", "unknown_check", "history", "base_history")
"""Tables of a classifier that its file of results holds."""


def train_classifier(data: AnnData | MuData, config: AnnotateConfig) -> CellTypeClassifier:
    """Set up cells that have labels, make a classifier and train it.

    Parameters
    ----------
    data
        Cells x genes; registry and split are added to it.
    config
        All options.

    Raises
    ------
    TypeError, KeyError, ValueError, FileNotFoundError
        As :meth:`scstate_lora.CellTypeClassifier.setup_anndata`, the class and its ``train()``.
    """
    adata = register(data, config.data, seed=config.seed).adata
    model = CellTypeClassifier(
        adata,
        base=config.base,
        linear_start=config.linear_start,
        head=config.head,
        lora=config.lora,
        compact=config.compact,
        seed=config.seed,
    )
    model.train(config.strategy, **config.train.model_dump(exclude_none=True))
    return model


def save_classifier(model: CellTypeClassifier, folder: Path, config: AnnotateConfig, file: Path) -> None:
    """Save a trained classifier with its options and results.

    Parameters
    ----------
    model
        The classifier.
    folder
        Directory. A model saved there before is replaced, once the new one is complete.
    config
        Its options.
    file
        The file of its cells.

    Raises
    ------
    FileExistsError, OSError
        As :meth:`scstate_lora.CellTypeClassifier.save`.

    Notes
    -----
    Beside what ``save()`` writes: ``config.yaml``, every option, and ``results.json``, see
    :class:`~scstate_lora.workflow.results_file.Results`.
    """
    model.save(folder)
    config = config.model_copy(update={"file": str(file)})
    tables = {name: getattr(model, name) for name in TABLES}
    results = Results(
        command="annotate train",
        settings=config.model_dump(mode="json"),
        files={"input": describe_file(file, folder)},
        split=split_record(
            ModelSplit.of(BoundData(model.registry, model.adata)), str(read_result(model.adata, SPLIT)["source"])
        ),
        versions=package_versions(),
        tables={name: table for name, table in tables.items() if len(table)},
    )
    add_texts(folder, {"config.yaml": to_yaml(config), FILE_NAME: results.text()})


class FileLabels(NamedTuple):
    """What was found for the cells of a file."""

    table: pd.DataFrame
    """One row a cell, as written to ``obs``."""
    added: list[str]
    """Keys that were added to ``obsm``."""


def label_file(
    model: CellTypeClassifier,
    path: str | Path,
    out: str | Path,
    *,
    allow: Sequence[str] | None = None,
    block: Sequence[str] = (),
    clusters: str | None = None,
    key_added: str = LABEL,
    **rules: Any,
) -> FileLabels:
    """Label the cells of a file, of which a block at a time is read, and write a copy with the labels.

    In memory are the tables of the cells and the probabilities of their labels, and 20,000 rows of the matrix.

    Parameters
    ----------
    model
        The classifier.
    path
        An ``.h5ad`` file or a ``.zarr`` directory.
    out
        A path with the same ending; may be `path`.
    allow, block, clusters, key_added, rules
        As in :meth:`scstate_lora.CellTypeClassifier.predict`.

    Raises
    ------
    KeyError, ValueError, FileNotFoundError
        As ``predict``, or the file is missing or damaged; before anything is written.
    OSError
        If writing failed; an existing file at `out` is unchanged.

    Notes
    -----
    Adds in `out` what ``predict`` adds to an AnnData; all else is as in `path`.
    """
    path = Path(path).expanduser()
    cells = open_cells(path, model.registry.layer)
    _add_embedding(cells, path, model.registry.embed_key)
    if clusters is not None and clusters not in cells.obs:
        msg = f"{path} has no column {clusters!r} in obs. {did_you_mean(clusters, cells.obs.columns)}"
        raise KeyError(msg)
    tree = next(iter(model.targets.values())).target.tree
    if tree is not None:
        tree.leaf_mask(allow=allow, block=block)  # refuses an unknown label before the matrix is read
    before = set(cells.obsm)
    table = model.predict(cells, allow=allow, block=block, clusters=clusters, key_added=key_added, **rules)
    added = [key for key in cells.obsm if key not in before]
    write_columns(
        path,
        Path(out).expanduser(),
        obs=cells.obs[list(table.columns)],
        obsm={key: cells.obsm[key] for key in added},
        uns=as_uns(ANNOTATE, dict(cells.uns[UNS_KEY][ANNOTATE])),
    )
    return FileLabels(table, added)


def _add_embedding(cells: AnnData, path: Path, key: str | None) -> None:
    """Read the embedding that a model stands on, which opened cells lack."""
    if key is None:
        return
    from anndata.io import read_elem

    from scstate_lora.data.storage import open_file

    file = open_file(path)
    if "obsm" in file and key in file["obsm"]:
        cells.obsm[key] = read_elem(file["obsm"][key])
