"""What a comparison found: its tables, and a summary of them."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

from scstate_lora.tl.comparison.scores import ALL_TARGETS
from scstate_lora.tl.scoring.cells import ALL_CONTEXTS

if TYPE_CHECKING:
    import pandas as pd

_SUMMARISED = ("pearson_delta", "e_distance", "nearest_distance_relative", "variance_ratio")


@dataclass(frozen=True, repr=False)
class Comparison:
    """What :func:`scstate_lora.tl.compare` found, as tables.

    Parameters
    ----------
    scores
        Of the predictions, means over the seeds: ``model``, ``target``, ``context``, ``metric``, ``value``, ``skill``,
        ``ci_low`` and ``ci_high``, ``interval`` (what the 95 % interval is over: ``"seeds"``, ``"contexts"``,
        ``"targets"``, or nothing), ``n_seeds``, ``direction``, ``lowest``, ``highest``, ``reason``.
    by_seed
        The same of every seed; baselines have the seed -1.
    training
        One row a variant and seed: parameters, and what :func:`stability` measures.
    criteria
        One row a variant and criterion: ``value``, ``side`` and ``threshold``, ``met`` (``"yes"``, ``"no"``,
        ``"not measured"``), ``level`` and ``reason``.
    histories
        Losses of every training: ``model`` and ``seed`` before the columns of ``.history``.
    """

    scores: pd.DataFrame
    by_seed: pd.DataFrame
    training: pd.DataFrame
    criteria: pd.DataFrame
    histories: pd.DataFrame

    def tables(self) -> dict[str, pd.DataFrame]:
        """All tables by name."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def summary(self) -> pd.DataFrame:
        """One row a model, baselines included: main scores, stability, size, time and memory, means over the seeds.

        The Pearson correlation of the change has its 95 % interval, and the skill is of that.
        """
        targets = list(dict.fromkeys(self.scores["target"]))
        main = self.scores[
            (self.scores["target"] == (ALL_TARGETS if ALL_TARGETS in targets else targets[0]))
            & (self.scores["context"] == ALL_CONTEXTS)
        ]
        models = list(dict.fromkeys(self.scores["model"]))
        wide = main.pivot(index="model", columns="metric", values="value").reindex(models)
        skill = main[main["metric"] == "pearson_delta"].set_index("model")["skill"].reindex(models)
        table = wide[[metric for metric in _SUMMARISED if metric in wide]].assign(skill=skill)
        for i, end in enumerate(("low", "high"), start=1):
            interval = main[main["metric"] == _SUMMARISED[0]].set_index("model")[f"ci_{end}"]
            table.insert(i, f"{_SUMMARISED[0]}_{end}", interval.reindex(models))
        columns = ["loss_variance", "gradient_spikes", "validation_improvement", "trained", "share"]
        means = self.training.groupby("model", sort=False)[[*columns, "seconds_per_epoch", "peak_memory_mb"]].mean()
        table = table.join(means).rename_axis("model").reset_index()
        reasons = self.training[self.training["reason"] != ""].groupby("model")["reason"].first()
        return table.assign(reason=[reasons.get(model, "") for model in table["model"]])

    def __repr__(self) -> str:
        shown = self.summary().drop(columns="reason")
        return f"Comparison of {len(shown)} models\n{shown.to_string(index=False, float_format='{:.3g}'.format)}"
