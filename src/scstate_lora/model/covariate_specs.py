"""Sizes of the covariates' encoders, from the fitted covariates."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scstate_lora.data.fields import CategoricalCovariate, Covariate
from scstate_lora.nn.covariates import CovariateSpec

if TYPE_CHECKING:
    from collections.abc import Iterable


def covariate_specs(covariates: Iterable[Covariate], *, embed_dim: int | None = None) -> dict[str, CovariateSpec]:
    """Describe covariates to :class:`~scstate_lora.nn.covariates.MultiCovariateEncoder`.

    Parameters
    ----------
    covariates
        Fitted covariates.
    embed_dim
        Width of every covariate's vector; each one's own by default.
    """
    specs = {}
    for c in covariates:
        width = embed_dim or c.embed_dim
        if isinstance(c, CategoricalCovariate):
            specs[c.name] = CovariateSpec(len(c.categories), width)
        else:
            specs[c.name] = CovariateSpec(None, width, c.hidden_dim, c.activation)
    return specs
