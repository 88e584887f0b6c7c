"""Shared by all models: the AnnData they were made on, the registry, saving, the parameter table."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
import pandas as pd
import torch
from anndata import AnnData

from scstate_lora._compat import read_csv
from scstate_lora._constants import OBS_SPLIT
from scstate_lora._tensors import in_float32
from scstate_lora.config import DataConfig
from scstate_lora.data.bound import BoundData
from scstate_lora.data.model_split import ModelSplit, hash_names
from scstate_lora.data.register import register
from scstate_lora.data.registry import Registry
from scstate_lora.data.split_column import SPLITS
from scstate_lora.io.save_load import load_directory, save_directory

if TYPE_CHECKING:
    from mudata import MuData
    from torch import Tensor, nn


class BaseModel(ABC):
    """A model of one registered AnnData.

    Parameters
    ----------
    adata
        Set up by :func:`scstate_lora.setup_anndata` or the class's own ``setup_anndata``.
    seed
        Seed of initialisation and training.
    """

    writes: ClassVar[str]
    """Where the model writes its results."""

    _data_options: ClassVar[type[DataConfig]] = DataConfig
    _histories: ClassVar[tuple[str, ...]] = ("history",)
    history: pd.DataFrame
    """Losses of the training, one row a step and one a validation epoch."""

    def __init__(self, adata: AnnData, *, seed: int = 0) -> None:
        self._adata: AnnData | None = check_anndata(adata)
        self.registry = Registry.from_adata(adata)
        self._split = ModelSplit.of(self._bind()) if OBS_SPLIT in adata.obs else None
        self._is_loaded = False
        self.seed = int(seed)
        for name in self._histories:
            setattr(self, name, pd.DataFrame())

    @classmethod
    def setup_anndata(cls, adata: AnnData | MuData, *, seed: int = 0, **kwargs: Any) -> None:
        """Validate and register an AnnData, without making a model.

        Parameters
        ----------
        adata, seed
            As in :func:`scstate_lora.setup_anndata`.
        kwargs
            As in :func:`scstate_lora.setup_anndata`, but for ``base``.

        Raises
        ------
        TypeError, KeyError, ValueError
            As in :func:`scstate_lora.setup_anndata`; nothing is written then.

        Notes
        -----
        Adds to ``adata``: ``adata.uns["scstate_lora"]["registry"]`` (JSON) and ``adata.obs["scstate_split"]``.
        """
        kwargs = cls._data_options.keywords(kwargs, function="setup_anndata()", further=("seed",))
        register(adata, cls._data_options.parse(kwargs, name="setup_anndata()"), seed=seed)

    @property
    def adata(self) -> AnnData:
        """The AnnData the model was made on; a ValueError for a model loaded without one."""
        if self._adata is None:
            msg = f"This {type(self).__name__} was loaded without data. Pass adata=, here or to load()."
            raise ValueError(msg)
        return self._adata

    @property
    def is_trained(self) -> bool:
        """Whether the model has been trained."""
        return len(self.history) > 0

    def _require_trained(self, action: str) -> None:
        if not self.is_trained:
            msg = f"{type(self).__name__} is not trained: call .train() before {action}."
            raise ValueError(msg)

    def _bind(self, adata: AnnData | None = None) -> BoundData:
        """Read cells by the model's registry; its own cells by default."""
        return BoundData(self.registry, self.adata if adata is None else check_anndata(adata))

    @property
    def split(self) -> pd.Series:
        """Split of the cells of :attr:`adata` as the model keeps it, ``train``, ``val`` or ``test``, by cell name.

        It is taken when the model is made, and stays when the AnnData is set up again. Cells that the model does not
        know have the split of the AnnData, as have all cells of a model saved by version 0.1.
        """
        cells = self._bind()
        return pd.Series(pd.Categorical(self.split_of(cells), categories=list(SPLITS)), index=cells.adata.obs_names)

    def split_of(self, cells: BoundData) -> np.ndarray:
        """Give the split of bound cells as the model keeps it, ``(n_cells,)``; of cells it does not know, their own."""
        if self._split is None:
            return cells.split
        kept = self._split.of_cells(hash_names(cells.adata.obs_names))
        unknown = kept < 0
        split = np.asarray(SPLITS, dtype=object)[kept]
        if unknown.any():
            split[unknown] = cells.split[unknown]
        return split

    def _bind_to_train(self) -> BoundData:
        """Read the model's own cells for training.

        Raises
        ------
        ValueError
            If their split is not the one that the model keeps.
        """
        cells = self._bind()
        now = ModelSplit.of(cells)
        if self._split is None:
            self._split = now
            return cells
        kept = self._split.of_cells(now.cells)
        if not self._is_loaded and (kept < 0).all() and len(now) == len(self._split):  # the cells were renamed
            kept = self._split.splits
        self._refuse_other_split(kept, now.splits)
        self._split = self._split.extended(now)
        return cells

    @property
    def _fingerprint(self) -> str:
        """Of the cells and their split, for checkpoints."""
        return "" if self._split is None else self._split.fingerprint

    def _refuse_other_split(self, kept: np.ndarray, now: np.ndarray) -> None:
        differs = (kept >= 0) & (kept != now)
        if not differs.any():
            return
        train = SPLITS.index("train")
        held_out = int(((kept >= 0) & (kept != train)).sum())
        leaked, name = int((differs & (now == train)).sum()), type(self).__name__
        lost = int((differs & (kept == train)).sum())
        msg = (
            f"The split of this AnnData, adata.obs[{OBS_SPLIT!r}], is not the one this {name} was made with: it was "
            f"set up again, or changed. {leaked} of the model's {held_out} held-out cells would train, and {lost} of "
            f"its training cells would be held out. Make the model anew, {name}(adata, ...), or restore its split: "
            f"adata.obs[{OBS_SPLIT!r}] = model.split."
        )
        raise ValueError(msg)

    @abstractmethod
    def _parts(self) -> list[tuple[str, nn.Module | None, str]]:
        """Named parts of the network (None when not built yet) with a note on each."""

    def summary(self) -> pd.DataFrame:
        """Tabulate the parts of the model: frozen and trained parameters, and notes on the sizes.

        Returns
        -------
        One row a part: ``part``, ``parameters``, ``trained``, ``share`` (of the trained ones in all), ``note``.
        """
        rows = []
        for part, module, note in self._parts():
            parameters = [] if module is None else list(module.parameters())
            total = sum(p.numel() for p in parameters)
            trained = sum(p.numel() for p in parameters if p.requires_grad)
            rows.append({"part": part, "parameters": total, "trained": trained, "note": note})
        table = pd.DataFrame(rows)
        total = int(table["parameters"].sum())
        all_parts = {"part": "total", "parameters": total, "trained": int(table["trained"].sum()), "note": ""}
        table = pd.concat([table, pd.DataFrame([all_parts])], ignore_index=True)
        table.insert(3, "share", table["trained"] / max(total, 1))
        return table

    def __repr__(self) -> str:
        state = f"trained, {int(self.history['step'].max())} steps" if self.is_trained else "not trained"
        shown = self.summary().to_string(index=False, formatters={"share": "{:.1%}".format}, justify="left")
        return f"{type(self).__name__} ({state}), writes {self.writes}\n{shown}"

    @abstractmethod
    def _metadata(self) -> dict[str, Any]:
        """JSON-able state from which ``_restore`` rebuilds the model."""

    @abstractmethod
    def _tensors(self) -> dict[str, dict[str, Tensor]]:
        """Tensors by file."""

    def _texts(self) -> dict[str, str]:
        """Further text files by name."""
        return {f"{name}.csv": getattr(self, name).to_csv(index=False) for name in self._histories}

    @abstractmethod
    def _restore(self, metadata: dict[str, Any], tensors: dict[str, dict[str, Tensor]], **options: Any) -> None:
        """Rebuild the network; registry and seed are set already. `options` are further arguments of ``load()``."""

    def save(self, path: str | Path) -> None:
        """Save the model as a directory of JSON and safetensors.

        Parameters
        ----------
        path
            Directory. A model saved there before is replaced, once the new one is complete.

        Raises
        ------
        ValueError
            If the model is not trained.
        FileExistsError
            If ``path`` holds something else.
        OSError
            If writing failed; an older save is intact.
        """
        self._require_trained("save()")
        self._write(path, self._tensors())

    def _write(self, path: str | Path, tensors: dict[str, dict[str, Tensor]]) -> None:
        metadata = {"model": type(self).__name__, "seed": self.seed, "registry": self.registry.to_json()}
        if self._split is not None:
            tensors = {**tensors, "split": {name: torch.from_numpy(a) for name, a in self._split.arrays().items()}}
        save_directory(path, metadata={**metadata, **self._metadata()}, tensors=tensors, texts=self._texts())

    @classmethod
    def load(cls, path: str | Path, *, adata: AnnData | None = None) -> Self:
        """Load a saved model.

        Parameters
        ----------
        path
            Directory written by :meth:`save`.
        adata
            Cells to use by default; validated against the model's registry when used.

        Raises
        ------
        FileNotFoundError, ValueError
            If the directory is missing, damaged, of a newer format, or holds another kind of model.
        """
        return cls._load(path, adata)

    @classmethod
    @in_float32()
    def _load(cls, path: str | Path, adata: AnnData | None, **options: Any) -> Self:
        metadata, tensors = load_directory(path)
        if metadata.get("model") != cls.__name__:
            stored = str(metadata.get("model"))
            msg = f"{path} holds a {stored}, not a {cls.__name__}. Load it by ssl.{stored}.load(...)."
            raise ValueError(msg)
        model = cls.__new__(cls)
        model._adata = None if adata is None else check_anndata(adata)
        model.registry = Registry.from_json(metadata["registry"])
        model.seed = metadata["seed"]
        split = tensors.pop("split", None)  # version 0.1 kept none
        model._split = None if split is None else ModelSplit.from_arrays(split)
        model._is_loaded = True
        for name in cls._histories:
            setattr(model, name, read_history(Path(path) / f"{name}.csv"))
        model._restore(metadata, tensors, **options)
        return model


def read_history(path: Path) -> pd.DataFrame:
    """Read a history as it was saved."""
    try:
        return read_csv(path)
    except pd.errors.EmptyDataError:  # a base that was not trained here
        return pd.DataFrame()


def check_anndata(adata: Any) -> AnnData:
    """Return an AnnData as it is; a TypeError for anything else."""
    if not isinstance(adata, AnnData):
        msg = f"Expected an AnnData, found {type(adata).__name__}. Of a MuData, give one modality: mdata['rna']."
        raise TypeError(msg)
    return adata
