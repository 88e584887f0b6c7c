"""Predicted and measured cells brought to the same genes and contexts, and what training says about perturbations."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from scstate_lora import metrics
from scstate_lora._utils import did_you_mean
from scstate_lora.data import Registry, log_expression
from scstate_lora.data.perturbations import PerturbationTable
from scstate_lora.data.results import is_predicted

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    import pandas as pd
    from anndata import AnnData
    from scipy import sparse

ALL_CONTEXTS = "all"


class Cells(NamedTuple):
    """Cells of one role: their log1p expression over the predicted genes, and context and perturbation of each."""

    expression: sparse.csr_matrix
    contexts: np.ndarray
    perturbations: np.ndarray

    def at(self, rows: np.ndarray) -> Cells:
        """Return the cells of a boolean mask."""
        return Cells(self.expression[np.flatnonzero(rows)], self.contexts[rows], self.perturbations[rows])

    def under(self, perturbation: str) -> Cells:
        """Return the cells of one level of the perturbation."""
        return self.at(self.perturbations == perturbation)

    def of(self, context: str) -> np.ndarray:
        """Dense float32 expression of one context, shape ``(n, n_genes)``."""
        return self.expression[np.flatnonzero(self.contexts == context)].toarray()

    def means(self) -> dict[str, np.ndarray]:
        """Mean expression of every context, float64 of shape ``(n_genes,)``."""
        return {
            context: mean_of(self.expression[np.flatnonzero(self.contexts == context)])
            for context in sorted(set(self.contexts))
        }

    def by_group(self) -> dict[tuple[str, str], np.ndarray]:
        """Positions of the cells of every perturbation and context."""
        groups: dict[tuple[str, str], list[int]] = {}
        for i, key in enumerate(zip(self.perturbations, self.contexts, strict=True)):
            groups.setdefault(key, []).append(i)
        return {key: np.array(groups[key]) for key in sorted(groups)}


def mean_of(expression: sparse.csr_matrix) -> np.ndarray:
    """Mean cell, float64 of shape ``(n_genes,)``."""
    return np.asarray(expression.mean(axis=0, dtype=np.float64)).ravel()


class Trained(NamedTuple):
    """Means of the training cells, from which the baselines learn; all empty without training cells."""

    all_cells: dict[str, np.ndarray]  # by context, whatever the perturbation
    controls: dict[str, np.ndarray]  # by context
    perturbed: dict[tuple[str, str], np.ndarray]  # by perturbation and context
    features: dict[str, np.ndarray] | None  # by perturbation
    linear: metrics.LinearEffects | None

    @classmethod
    def of(cls, cells: Cells | None, *, control: str, features: PerturbationTable | None) -> Trained:
        """Average the training cells and fit the linear baseline."""
        if cells is None:
            return cls({}, {}, {}, None, None)
        means = {key: mean_of(cells.expression[rows]) for key, rows in cells.by_group().items()}
        perturbed = {key: mean for key, mean in means.items() if key[0] != control}
        made = cls(
            all_cells=cells.means(),
            controls={context: mean for (name, context), mean in means.items() if name == control},
            perturbed=perturbed,
            features=None,
            linear=None,
        )
        deltas = made.deltas
        if not deltas:
            return made
        rows = None
        if features is not None:
            names = sorted({name for name, _ in deltas})
            rows = dict(zip(names, features.encode(names).astype(np.float64), strict=True))
        return made._replace(features=rows, linear=metrics.LinearEffects.fit(made.controls, deltas, features=rows))

    @property
    def deltas(self) -> dict[tuple[str, str], np.ndarray]:
        """Change of the mean by perturbation and context, where there are controls."""
        return {
            (name, context): mean - self.controls[context]
            for (name, context), mean in self.perturbed.items()
            if context in self.controls
        }


def refuse_predicted(adata: AnnData, argument: str) -> None:
    """Raise if these are predicted cells."""
    if is_predicted(adata) or "control_cell" in adata.obs:
        msg = (
            f"{argument} holds predicted cells (it comes from STTransition.predict); scores need measured ones. "
            f"Give the measured cells as {argument}."
        )
        raise ValueError(msg)


def labels_of(adata: AnnData, key: str, argument: str, registry: Registry) -> np.ndarray:
    """Values of a column as strings; those that the registry allows to be missing are a group of their own."""
    if key not in adata.obs:
        msg = f"{argument}.obs[{key!r}] does not exist. {did_you_mean(key, adata.obs.columns)}"
        raise KeyError(msg)
    return registry.labels(adata, key)


def read_cells(
    adata: AnnData,
    argument: str,
    *,
    registry: Registry,
    genes: Sequence[str],
    context_keys: Sequence[str],
    pert_key: str,
) -> Cells:
    """Read all cells, genes in the order given.

    Parameters
    ----------
    adata, argument
        Predicted or measured cells, and what the caller's parameter is called.
    registry
        Of these cells; for predicted ones, of the measured cells beside them.
    genes, context_keys, pert_key
        Genes wanted; columns that make a context; column of the perturbation.
    """
    columns = [labels_of(adata, key, argument, registry) for key in context_keys]
    contexts = np.full(adata.n_obs, ALL_CONTEXTS, dtype=object)
    if columns:
        contexts = np.array([" | ".join(parts) for parts in zip(*columns, strict=True)], dtype=object)
    found = [str(g) for g in adata.var_names] if is_predicted(adata) else registry.var_names
    position = {gene: i for i, gene in enumerate(found)}
    for gene in genes:
        if gene not in position:
            missing = sum(g not in position for g in genes)
            msg = (
                f"{missing} of the {len(genes)} genes of pred are not in {argument}, the first is {gene!r}. "
                f"{did_you_mean(gene, found)}"
            )
            raise KeyError(msg)
    expression = log_expression(adata)[:, [position[gene] for gene in genes]]
    return Cells(expression, contexts, labels_of(adata, pert_key, argument, registry))


def require_level(cells: Cells, argument: str, pert_key: str, level: str) -> Cells:
    """Return the cells with that level of the perturbation; there must be one."""
    if level not in cells.perturbations:
        found = ", ".join(repr(label) for label in sorted(set(cells.perturbations))[:10])
        msg = f"{argument}.obs[{pert_key!r}] has no cell {level!r}; it holds {found}."
        raise ValueError(msg)
    return cells.under(level)


def common_contexts(predicted: Cells, perturbed: Cells, controls: Cells) -> list[str]:
    """Contexts with predicted and measured cells; each must have controls."""
    contexts = sorted(set(predicted.contexts) & set(perturbed.contexts))
    if not contexts:
        msg = (
            f"No context has both predicted and measured cells: pred has {sorted(set(predicted.contexts))[:10]}, "
            f"real has {sorted(set(perturbed.contexts))[:10]}."
        )
        raise ValueError(msg)
    if ALL_CONTEXTS in contexts and len(contexts) > 1:
        msg = f"A context is called {ALL_CONTEXTS!r}, the name of the average over contexts; rename it."
        raise ValueError(msg)
    lacking = sorted(set(contexts) - set(controls.contexts))
    if lacking:
        msg = (
            f"control has no measured control cells in {', '.join(lacking)}; a delta needs controls of its own "
            "context. Add them, or leave these contexts out of pred."
        )
        raise ValueError(msg)
    return contexts


def warn_of_overlap(real: pd.Index, train: pd.Index, *, what: str) -> None:
    """Warn if measured cells that scores are made on are among those of training; called by a public function."""
    shared = len(set(real) & set(train))
    if shared:
        warnings.warn(
            f"{shared} {what} are in both real and train, by name: the scores are not of held-out cells.",
            UserWarning,
            stacklevel=3,
        )


def feature_table(pert_features: pd.DataFrame | None, train: Cells | None, *, control: str) -> PerturbationTable | None:
    """Features as the linear baseline reads them, standardised over the perturbations of the training cells."""
    if pert_features is None or train is None:
        return None
    trained: Collection[str] = sorted(set(train.perturbations) - {control})
    return PerturbationTable.of_features(pert_features, trained=trained, control=control)
