from __future__ import annotations

from scstate_lora.data.fields import CategoricalCovariate, ContinuousCovariate
from scstate_lora.model.covariate_specs import covariate_specs
from scstate_lora.nn.covariates import CovariateSpec

COVARIATES = (
    CategoricalCovariate("condition", ("burn", "sham"), embed_dim=12),
    ContinuousCovariate("day", 2.0, 1.0, 0.0, 4.0, embed_dim=8, hidden_dim=5, activation="tanh"),
)


def test_specs_say_what_was_declared_in_order():
    specs = covariate_specs(COVARIATES)
    assert list(specs) == ["condition", "day"]
    assert specs["condition"] == CovariateSpec(2, 12)
    assert specs["day"] == CovariateSpec(None, 8, 5, "tanh")


def test_one_width_for_all():
    specs = covariate_specs(COVARIATES, embed_dim=64)
    assert [spec.embed_dim for spec in specs.values()] == [64, 64]
    assert specs["day"].hidden_dim == 5
