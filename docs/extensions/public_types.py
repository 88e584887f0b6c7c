"""Show types under the names that people import, and leave out members that other packages define."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Annotated, Any, get_args, get_origin

import numpy as np
import numpy.typing as npt
from sphinx_autodoc_typehints import format_annotation

if TYPE_CHECKING:
    from sphinx.application import Sphinx
    from sphinx.config import Config

_PUBLIC = {
    "anndata._core.anndata.AnnData": "anndata.AnnData",
    "matplotlib.axes._axes.Axes": "matplotlib.axes.Axes",
    "mudata._core.mudata.MuData": "mudata.MuData",
    "pandas.core.frame.DataFrame": "pandas.DataFrame",
    "pandas.core.series.Series": "pandas.Series",
    "pandas.core.indexes.base.Index": "pandas.Index",
    "scstate_lora.config.training.TrainArguments": "scstate_lora.config.TrainOptions",
    "scstate_lora.config.classifier.ClassifierTrainArguments": "scstate_lora.config.ClassifierTrainOptions",
    "scstate_lora.config.training.TrainerArguments": "scstate_lora.config.TrainerOptions",
    "torch.nn.modules.module.Module": "torch.nn.Module",
    "torch.nn.parameter.Parameter": "torch.nn.Parameter",
}
_ARRAY_LIKE = get_args(npt.ArrayLike)


def format_type(annotation: Any, config: Config) -> str | None:
    """RST of an annotation; None leaves it to sphinx_autodoc_typehints."""
    if annotation is Ellipsis:
        return "..."
    if get_origin(annotation) is Annotated:  # validators mean nothing to a reader
        return format_annotation(get_args(annotation)[0], config)
    if isinstance(annotation, type) and get_origin(annotation) is None:
        module, _, name = (public := _public_name(annotation)).rpartition(".")
        return f":py:class:`~{public}`" if module and f"{annotation.__module__}.{name}" != public else None
    if get_origin(annotation) is np.ndarray:
        scalar = get_args(get_args(annotation)[1])[0]
        return f":py:data:`~numpy.typing.NDArray`\\ \\[{format_annotation(scalar, config)}]"
    parts = get_args(annotation)
    if len(parts) >= len(_ARRAY_LIKE) and all(part in parts for part in _ARRAY_LIKE):  # a union takes it to pieces
        rest = [format_annotation(part, config) for part in parts if part not in _ARRAY_LIKE]
        return " | ".join([":py:data:`~numpy.typing.ArrayLike`", *rest])
    return None


def _public_name(cls: type) -> str:
    name = f"{cls.__module__}.{cls.__qualname__}"
    if cls.__module__.startswith("scipy.sparse."):
        return f"scipy.sparse.{cls.__qualname__}"
    return _PUBLIC.get(name, name)


def is_foreign(app: Sphinx, what: str, name: str, obj: Any, skip: bool, options: Any) -> bool | None:  # noqa: FBT001
    """Skip what a class inherits from another package: torch's, pydantic's, tuple's."""
    function = obj.fget if isinstance(obj, property) else getattr(obj, "__func__", obj)
    if what == "class" and (inspect.isroutine(function) or isinstance(obj, property)):
        return None if (getattr(function, "__module__", None) or "").startswith("scstate_lora") else True
    return True if what == "class" and name in ("model_config", "model_fields", "model_computed_fields") else None


def setup(app: Sphinx) -> dict[str, Any]:
    """Hook both in."""
    app.setup_extension("sphinx_autodoc_typehints")
    app.connect("autodoc-skip-member", is_foreign)
    app.config.typehints_formatter = format_type
    return {"parallel_read_safe": True, "parallel_write_safe": True}
