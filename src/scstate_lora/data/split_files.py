"""Split files: held-out cell types and perturbations in TOML, in the format of Arc's cell-load."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
from pydantic import Field, PrivateAttr, model_validator

from scstate_lora._utils import did_you_mean, listed, warn_user
from scstate_lora.config.options import Options
from scstate_lora.data.labels import label_of

if TYPE_CHECKING:
    from scstate_lora.data.bound import BoundData
    from scstate_lora.data.registry import Registry

_HELD_OUT = ("val", "test")
_EXAMPLES = {
    "datasets": 'mine = "path"',
    "training": 'mine = "train"',
    "zeroshot": '"mine.B cells" = "test"',
    "fewshot": '"mine.B cells" = {val = ["A"], test = ["B"]}',
}


class FewShot(Options):
    """Held-out perturbations of one cell type; its other perturbations are used for training."""

    val: tuple[str, ...] = ()
    """Perturbations for validation."""
    test: tuple[str, ...] = ()
    """Perturbations for testing; a perturbation listed in both is used for testing only."""


class SplitFile(Options):
    """The sections of a split file. Keys of the last two are ``"dataset.cell type"``, split at the first dot."""

    datasets: dict[str, str] = Field(default_factory=dict)
    """Path to the cells of each dataset; not read for cells that are already in memory."""
    training: dict[str, Literal["train"]] = Field(default_factory=dict)
    """Datasets for training, except for cells held out by the other two sections."""
    zeroshot: dict[str, Literal["val", "test"]] = Field(default_factory=dict)
    """Cell types that are held out entirely."""
    fewshot: dict[str, FewShot] = Field(default_factory=dict)
    """Cell types with some perturbations held out."""

    _source: str = PrivateAttr("split")

    @property
    def source(self) -> str:
        """The file's path as given; ``"split"`` if the sections were not read from a file."""
        return self._source

    @classmethod
    def of(cls, split: Any) -> Self:
        """Make a SplitFile from a path or a mapping of the sections; an existing SplitFile is returned.

        Raises
        ------
        TypeError
            If ``split`` is none of these.
        FileNotFoundError, ValueError
            As in :meth:`read`.
        """
        if isinstance(split, (str, os.PathLike)):
            return cls.read(split)
        if not isinstance(split, (dict, cls)):
            msg = f"split must be the path to a TOML file, a dict of its sections or a SplitFile, found {split!r}."
            raise TypeError(msg)
        return cls.parse(split, name="split")

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> Self:
        """Read a TOML file.

        Raises
        ------
        FileNotFoundError
            If the file does not exist; the message suggests similar names.
        ValueError
            If it is a folder or not TOML, or has an invalid section, dataset or value.
        """
        file = Path(path).expanduser()
        if not file.exists():
            available = sorted(other.name for other in file.parent.glob("*.toml"))
            msg = f"The split file {file} does not exist."
            raise FileNotFoundError(msg + (f" {did_you_mean(file.name, available)}" if available else ""))
        if not file.is_file():
            msg = f"{file} is a folder; a split file is a TOML file."
            raise ValueError(msg)
        try:
            sections = tomllib.loads(file.read_text(encoding="utf-8-sig"))
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            msg = f"{file} cannot be read as TOML: {error}."
            raise ValueError(msg) from error
        split = cls.parse(sections, name=str(file))
        split._source = str(path)
        return split

    @model_validator(mode="before")
    @classmethod
    def _check(cls, sections: Any) -> Any:
        """Check the sections, with errors in terms of the file; convert names of perturbations to text."""
        if not isinstance(sections, dict):
            return sections
        for section, content in sections.items():
            if section not in _EXAMPLES:
                msg = f"a split file has no section [{section}]. {did_you_mean(section, _EXAMPLES)}"
                raise ValueError(msg)
            if not isinstance(content, Mapping):
                msg = f"{section} = {content!r} is not a section. Write [{section}], and below it {_EXAMPLES[section]}."
                raise ValueError(msg)
        datasets = sections.get("datasets", {})
        for name, path in datasets.items():
            if not isinstance(path, str):
                msg = f"[datasets] {name} = {path!r} is not a path. Write it in quotes: {_EXAMPLES['datasets']}."
                raise ValueError(msg)
        for name, value in sections.get("training", {}).items():
            _check_dataset("training", name, datasets)
            if value != "train":
                msg = f'[training] {name} = {value!r} is not allowed. Write "train", or leave the line out.'
                raise ValueError(msg)
        for key, value in sections.get("zeroshot", {}).items():
            _check_key("zeroshot", key, value, datasets)
            if value not in _HELD_OUT:
                hint = did_you_mean(str(value), _HELD_OUT)
                msg = f'[zeroshot] "{key}" = {value!r} is not allowed: cell types are held out for val or test. {hint}'
                raise ValueError(msg)
            if key in sections.get("fewshot", {}):
                msg = f"{key!r} is in both [zeroshot] (all of its cells) and [fewshot] (some of them). Leave one out."
                raise ValueError(msg)
        few = {key: _few_shot(key, value, datasets) for key, value in sections.get("fewshot", {}).items()}
        return {**sections, "fewshot": few}

    def choose(self, dataset: str | None = None) -> str:
        """Determine which dataset the cells in memory are: the given one, or the only one that the file splits.

        Raises
        ------
        ValueError
            If the dataset is not in the file, or none is given and the file splits none or several.
        """
        keys = [*self.training, *self.zeroshot, *self.fewshot]
        named = list(dict.fromkeys(key.partition(".")[0] for key in keys))
        if dataset is not None:
            if dataset not in self.datasets:
                msg = f"split_dataset={dataset!r} is not in {self.source}, [datasets]. "
                raise ValueError(msg + did_you_mean(dataset, self.datasets))
            return dataset
        if len(named) == 1:
            return named[0]
        if not named:
            msg = f"{self.source} splits nothing: [training], [zeroshot] and [fewshot] name no dataset."
            raise ValueError(msg)
        msg = (
            f"{self.source} splits {len(named)} datasets ({listed(named)}). Name the one these cells belong to: "
            f"split_dataset={named[0]!r}."
        )
        raise ValueError(msg)

    def rules(self, dataset: str) -> tuple[dict[str, Literal["val", "test"]], dict[str, FewShot]]:
        """Return the held-out cell types of one dataset: those held out entirely, and those by perturbation."""
        prefix = f"{dataset}."
        whole = {key.removeprefix(prefix): split for key, split in self.zeroshot.items() if key.startswith(prefix)}
        partial = {key.removeprefix(prefix): few for key, few in self.fewshot.items() if key.startswith(prefix)}
        return whole, partial

    def split(self, cells: BoundData, *, dataset: str | None = None, spare_controls: bool = False) -> np.ndarray:
        """Assign every cell to ``train``, ``val`` or ``test``.

        Parameters
        ----------
        cells
            The registered cells.
        dataset
            The file's dataset to which they belong; see :meth:`choose`.
        spare_controls
            Whether control cells of cell types that are held out entirely are used for training.

        Returns
        -------
        Strings of shape ``(n_cells,)``.

        Raises
        ------
        ValueError
            If a cell type or perturbation in the file is not in the data, the control is held out, the data were set up
            without a column that the file needs, or cells belong to no split.

        Warns
        -----
        UserWarning
            If a perturbation is in both ``val`` and ``test``, or was not measured in its cell type.
        """
        name = self.choose(dataset)
        whole, partial = self.rules(name)
        registry = cells.registry
        types = self._cell_types(cells, name)
        perts = np.full(len(cells), "")
        if registry.pert_key is not None:
            perts = cells.perturbations.astype(str)
        elif partial:
            msg = f"{self.source}, [fewshot], holds out perturbations. Name their column of adata.obs: pert_key=."
            raise ValueError(msg)
        if name not in self.training and not np.isin(types, [*whole, *partial]).all():
            unused = sorted(set(types) - {*whole, *partial})
            msg = (
                f"{self.source}, [training], does not list {name!r}, so cells of {len(unused)} cell types belong to no "
                f'split: {listed(unused)}. Write {name} = "train" there, or remove these cells from the data.'
            )
            raise ValueError(msg)
        split = np.full(len(cells), "train", dtype=object)
        for cell_type, held in whole.items():
            split[(types == cell_type) & ~(spare_controls & (perts == registry.control))] = held
        for cell_type, few in partial.items():
            within = types == cell_type
            few = FewShot(val=tuple(registry.targets_of(few.val)), test=tuple(registry.targets_of(few.test)))
            self._check_few_shot(f'[fewshot."{name}.{cell_type}"]', few, set(perts[within]), registry)
            split[within & np.isin(perts, few.val)] = "val"
            split[within & np.isin(perts, few.test)] = "test"  # after val: test cells must not select weights
        return split

    def _cell_types(self, cells: BoundData, dataset: str) -> np.ndarray:
        """Return the cell type of every cell, after checking that those in the file exist."""
        whole, partial = self.rules(dataset)
        sections = {"zeroshot": list(whole), "fewshot": list(partial)}
        types, key = cells.cell_types, cells.registry.cell_type_key
        if types is None:
            if any(sections.values()):
                msg = f"{self.source} holds out cell types. Name their column of adata.obs: cell_type_key=."
                raise ValueError(msg)
            return np.full(len(cells), "", dtype=object)
        available = sorted(set(types))
        for section, named in sections.items():
            for cell_type in named:
                if cell_type not in available:
                    msg = (
                        f'{self.source}, [{section}], names "{dataset}.{cell_type}", but {cell_type!r} is not in '
                        f"adata.obs[{key!r}]. {did_you_mean(cell_type, available)}"
                    )
                    raise ValueError(msg)
        return types

    def _check_few_shot(self, section: str, few: FewShot, measured: set[str], registry: Registry) -> None:
        """Refuse the control and absent perturbations; warn about perturbations without cells or in two splits."""
        named = list(dict.fromkeys([*few.val, *few.test]))
        absent = [name for name in named if name not in registry.perturbations]
        if absent:
            more = f" {len(absent)} of its {len(named)} names are absent." if len(absent) > 1 else ""
            msg = (
                f"{self.source}, {section}, names {absent[0]!r}, which is not in adata.obs[{registry.pert_key!r}]."
                f"{more} {did_you_mean(absent[0], registry.perturbations)}"
            )
            raise ValueError(msg)
        if registry.control in named:
            msg = (
                f"{self.source}, {section}, names the control {registry.control!r}: if only some perturbations of a "
                "cell type are held out, its control cells are used for training. Leave it out; [zeroshot] holds out "
                "control cells too."
            )
            raise ValueError(msg)
        both = [name for name in few.val if name in few.test]
        if both:
            warn_user(f"{self.source}, {section}: {listed(both)} in both val and test; used for testing only.")
        unmeasured = [name for name in named if name not in measured]
        if unmeasured:
            warn_user(f"{self.source}, {section}: no cell of this cell type has {listed(unmeasured)}.")


def _check_dataset(section: str, name: str, datasets: Mapping[str, Any]) -> None:
    if name not in datasets:
        msg = f"[{section}] names the dataset {name!r}, which [datasets] does not list. {did_you_mean(name, datasets)}"
        raise ValueError(msg)


def _check_key(section: str, key: str, value: Any, datasets: Mapping[str, Any]) -> None:
    """Require keys of the form "dataset.cell type"; without quotes, TOML reads them as nested tables."""
    dataset, _, cell_type = key.partition(".")
    if not cell_type:
        nested = next(iter(value)) if isinstance(value, Mapping) and value and key in datasets else "cell type"
        msg = f'[{section}] has the key {key!r}; keys are a dataset and a cell type, in quotes: "{dataset}.{nested}".'
        raise ValueError(msg)
    _check_dataset(section, dataset, datasets)


def _few_shot(key: str, value: Any, datasets: Mapping[str, Any]) -> Any:
    """Check the perturbations of one cell type; numbers become labels."""
    _check_key("fewshot", key, value, datasets)
    section = f'[fewshot."{key}"]'
    if isinstance(value, FewShot):
        return value
    if not isinstance(value, Mapping):
        msg = f'{section} must hold val = ["A"] and test = ["B"], found {value!r}.'
        raise ValueError(msg)
    for split, names in value.items():
        if split not in _HELD_OUT:
            hint = did_you_mean(split, _HELD_OUT)
            msg = f"{section} holds {split!r}; perturbations are held out for val or test. {hint}"
            raise ValueError(msg)
        if not isinstance(names, (list, tuple)) or not all(isinstance(name, (str, int, float)) for name in names):
            msg = f'{section} {split} = {names!r} is not a list of perturbations: {split} = ["A", "B"].'
            raise ValueError(msg)
    return {split: tuple(label_of(name) for name in names) for split, names in value.items()}
