"""Split files: the cell types and perturbations that are held out, in TOML, as Arc's cell-load reads them."""

from __future__ import annotations

import os
import tomllib
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
from pydantic import Field, PrivateAttr, model_validator

from scstate_lora._utils import did_you_mean
from scstate_lora.config.options import Options
from scstate_lora.data.fields import label_of

if TYPE_CHECKING:
    from collections.abc import Iterable

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
    """Perturbations of one cell type that are held out; all others of it train."""

    val: tuple[str, ...] = ()
    """Those that validate."""
    test: tuple[str, ...] = ()
    """Those that test; one that stands in both tests only."""


class SplitFile(Options):
    """The sections of a split file. Keys of the last two are ``"dataset.cell type"``, parted at the first dot."""

    datasets: dict[str, str] = Field(default_factory=dict)
    """Path of the cells of every dataset. Cells in memory are not read from there."""
    training: dict[str, Literal["train"]] = Field(default_factory=dict)
    """Datasets whose cells train, but for those held out by the other two sections."""
    zeroshot: dict[str, Literal["val", "test"]] = Field(default_factory=dict)
    """Cell types that are held out as a whole."""
    fewshot: dict[str, FewShot] = Field(default_factory=dict)
    """Cell types of which some perturbations are held out."""

    _source: str = PrivateAttr("split")

    @property
    def source(self) -> str:
        """The file's path as it was given; ``"split"`` for what was not read from a file."""
        return self._source

    @classmethod
    def of(cls, split: Any) -> Self:
        """Make one from a path, from a mapping of the sections, or from what is one.

        Raises
        ------
        TypeError
            Something else was given.
        FileNotFoundError, ValueError
            As :meth:`read`.
        """
        if isinstance(split, (str, os.PathLike)):
            return cls.read(split)
        if not isinstance(split, (dict, cls)):
            msg = f"split must be the path of a TOML file, a dict of its sections or a SplitFile, found {split!r}."
            raise TypeError(msg)
        return cls.parse(split, name="split")

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> Self:
        """Read a TOML file.

        Raises
        ------
        FileNotFoundError
            There is no such file; near names are suggested.
        ValueError
            It is a folder, is not TOML, or holds a section, a dataset or a value that does not belong there.
        """
        place = Path(path).expanduser()
        if not place.exists():
            there = sorted(file.name for file in place.parent.glob("*.toml"))
            msg = f"There is no split file {place}." + (f" {did_you_mean(place.name, there)}" if there else "")
            raise FileNotFoundError(msg)
        if not place.is_file():
            msg = f"{place} is a folder; a split file is a TOML file."
            raise ValueError(msg)
        try:
            sections = tomllib.loads(place.read_text(encoding="utf-8-sig"))
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            msg = f"{place} cannot be read as TOML: {error}."
            raise ValueError(msg) from error
        read = cls.parse(sections, name=str(place))
        read._source = str(path)
        return read

    @model_validator(mode="before")
    @classmethod
    def _check(cls, given: Any) -> Any:
        """Say in the words of the file what is wrong with it; bring names of perturbations to text."""
        if not isinstance(given, dict):
            return given
        for section, content in given.items():
            if section not in _EXAMPLES:
                msg = f"there is no section [{section}] in a split file. {did_you_mean(section, _EXAMPLES)}"
                raise ValueError(msg)
            if not isinstance(content, Mapping):
                msg = f"{section} = {content!r} is no section. Write [{section}], and below it {_EXAMPLES[section]}."
                raise ValueError(msg)
        datasets = given.get("datasets", {})
        for name, path in datasets.items():
            if not isinstance(path, str):
                msg = f"[datasets] {name} = {path!r} is no path. Write one in quotes: {_EXAMPLES['datasets']}."
                raise ValueError(msg)
        for name, value in given.get("training", {}).items():
            _check_dataset("training", name, datasets)
            if value != "train":
                msg = f'[training] {name} = {value!r} is not allowed: it is "train", or the line is left out.'
                raise ValueError(msg)
        for key, value in given.get("zeroshot", {}).items():
            _check_key("zeroshot", key, value, datasets)
            if value not in _HELD_OUT:
                near = did_you_mean(str(value), _HELD_OUT)
                msg = f'[zeroshot] "{key}" = {value!r} is not allowed: a cell type is held out for val or test. {near}'
                raise ValueError(msg)
            if key in given.get("fewshot", {}):
                msg = f"{key!r} stands in [zeroshot] and in [fewshot]: all of its cells or some. Leave one out."
                raise ValueError(msg)
        few = {key: _few_shot(key, value, datasets) for key, value in given.get("fewshot", {}).items()}
        return {**given, "fewshot": few}

    def choose(self, dataset: str | None = None) -> str:
        """Name the dataset that the cells in memory are: the one given, or the only one that the file splits.

        Raises
        ------
        ValueError
            It is not in the file, or none is given and the file splits none or several.
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
            f"{self.source} splits {len(named)} datasets ({_listed(named)}), and these cells are one of them. Say "
            f"which: split_dataset={named[0]!r}."
        )
        raise ValueError(msg)

    def rules(self, dataset: str) -> tuple[dict[str, Literal["val", "test"]], dict[str, FewShot]]:
        """Give what is held out of one dataset, by cell type: as a whole, and by perturbation."""
        prefix = f"{dataset}."
        whole = {key.removeprefix(prefix): to for key, to in self.zeroshot.items() if key.startswith(prefix)}
        some = {key.removeprefix(prefix): few for key, few in self.fewshot.items() if key.startswith(prefix)}
        return whole, some

    def split(self, cells: BoundData, *, dataset: str | None = None, spare_controls: bool = False) -> np.ndarray:
        """Assign every cell to ``train``, ``val`` or ``test``.

        Parameters
        ----------
        cells
            The registered cells.
        dataset
            Which of the file's datasets they are; see :meth:`choose`.
        spare_controls
            Whether control cells of cell types that are held out as a whole train.

        Returns
        -------
        Strings of shape ``(n_cells,)``.

        Raises
        ------
        ValueError
            A cell type or a perturbation of the file is not in the data, the control is among those held out, the
            data was registered without what the file names, or cells belong to no split.

        Warns
        -----
        UserWarning
            A perturbation stands in ``val`` and ``test``, or was not measured in its cell type.
        """
        name = self.choose(dataset)
        whole, some = self.rules(name)
        registry = cells.registry
        types = self._cell_types(cells, name)
        perts = np.full(len(cells), "")
        if registry.pert_key is not None:
            perts = cells.perturbations.astype(str)
        elif some:
            msg = f"{self.source}, [fewshot], holds perturbations out. Name their column of adata.obs: pert_key=."
            raise ValueError(msg)
        if name not in self.training and not np.isin(types, [*whole, *some]).all():
            unused = sorted(set(types) - {*whole, *some})
            msg = (
                f"{self.source}, [training], leaves {name!r} out, so cells of {len(unused)} cell types belong to no "
                f'split: {_listed(unused)}. Write {name} = "train" there, or take these cells out of the data.'
            )
            raise ValueError(msg)
        split = np.full(len(cells), "train", dtype=object)
        for cell_type, held in whole.items():
            split[(types == cell_type) & ~(spare_controls & (perts == registry.control))] = held
        for cell_type, few in some.items():
            within = types == cell_type
            self._check_few_shot(f'[fewshot."{name}.{cell_type}"]', few, set(perts[within]), registry)
            split[within & np.isin(perts, few.val)] = "val"
            split[within & np.isin(perts, few.test)] = "test"  # after val: what is in both must not choose the weights
        return split

    def _cell_types(self, cells: BoundData, dataset: str) -> np.ndarray:
        """Cell type of every cell, all of the file's being among them."""
        whole, some = self.rules(dataset)
        sections = {"zeroshot": list(whole), "fewshot": list(some)}
        types, key = cells.cell_types, cells.registry.cell_type_key
        if types is None:
            if any(sections.values()):
                msg = f"{self.source} holds cell types out. Name their column of adata.obs: cell_type_key=."
                raise ValueError(msg)
            return np.full(len(cells), "", dtype=object)
        known = sorted(set(types))
        for section, named in sections.items():
            for cell_type in named:
                if cell_type not in known:
                    msg = (
                        f'{self.source}, [{section}], names "{dataset}.{cell_type}", and {cell_type!r} is not in '
                        f"adata.obs[{key!r}]. {did_you_mean(cell_type, known)}"
                    )
                    raise ValueError(msg)
        return types

    def _check_few_shot(self, section: str, few: FewShot, measured: set[str], registry: Registry) -> None:
        """Refuse perturbations that are not in the data, and the control; warn of what has no cells or two splits."""
        named = list(dict.fromkeys([*few.val, *few.test]))
        known = set(registry.perturbations)
        unknown = [name for name in named if name not in known]
        if unknown:
            more = f" {len(unknown)} of its {len(named)} names are not there." if len(unknown) > 1 else ""
            near = did_you_mean(unknown[0], registry.perturbations)
            msg = (
                f"{self.source}, {section}, names {unknown[0]!r}, which adata.obs[{registry.pert_key!r}] does not hold."
            )
            msg_0 = f"{msg}{more} {near}"
            raise ValueError(msg_0)
        if registry.control in named:
            msg = (
                f"{self.source}, {section}, names the control {registry.control!r}: controls of a cell type of which "
                "some perturbations are held out train. Leave it out; [zeroshot] holds controls out too."
            )
            raise ValueError(msg)
        both = [name for name in few.val if name in few.test]
        if both:
            msg = f"{self.source}, {section}: {_listed(both)} in val and in test; their cells test and do not validate."
            warnings.warn(msg, UserWarning, stacklevel=2)
        absent = [name for name in named if name not in measured]
        if absent:
            msg = f"{self.source}, {section}: no cell of this cell type has {_listed(absent)}."
            warnings.warn(msg, UserWarning, stacklevel=2)


def _check_dataset(section: str, name: str, datasets: Mapping[str, Any]) -> None:
    if name not in datasets:
        msg = f"[{section}] names the dataset {name!r}, which [datasets] does not list. {did_you_mean(name, datasets)}"
        raise ValueError(msg)


def _check_key(section: str, key: str, value: Any, datasets: Mapping[str, Any]) -> None:
    """Refuse a key that is not "dataset.cell type", and one that lost its quotes, which TOML reads as nested."""
    dataset, _, cell_type = key.partition(".")
    if not cell_type:
        nested = next(iter(value)) if isinstance(value, Mapping) and value and key in datasets else "cell type"
        msg = f'[{section}] holds {key!r}; a key is a dataset and a cell type, in quotes: "{dataset}.{nested}".'
        raise ValueError(msg)
    _check_dataset(section, dataset, datasets)


def _few_shot(key: str, value: Any, datasets: Mapping[str, Any]) -> Any:
    """Check the perturbations of one cell type; numbers become the levels of that name."""
    _check_key("fewshot", key, value, datasets)
    where = f'[fewshot."{key}"]'
    if isinstance(value, FewShot):
        return value
    if not isinstance(value, Mapping):
        msg = f'{where} must hold val = ["A"] and test = ["B"], found {value!r}.'
        raise ValueError(msg)
    for held, names in value.items():
        if held not in _HELD_OUT:
            msg = f"{where} holds {held!r}; perturbations are held out for val or test. {did_you_mean(held, _HELD_OUT)}"
            raise ValueError(msg)
        if not isinstance(names, (list, tuple)) or not all(isinstance(name, (str, int, float)) for name in names):
            msg = f'{where} {held} = {names!r} is not a list of perturbations: {held} = ["A", "B"].'
            raise ValueError(msg)
    return {held: tuple(label_of(name) for name in names) for held, names in value.items()}


def _listed(names: Iterable[str]) -> str:
    names = list(names)
    return ", ".join(map(repr, names[:5])) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
