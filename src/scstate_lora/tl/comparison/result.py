"""The result of a comparison: its tables, and a summary of them."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

from scstate_lora.tl.scoring.table import ALL

if TYPE_CHECKING:
    import pandas as pd

_SUMMARISED = ("pearson_delta", "e_distance", "nearest_distance_relative", "variance_ratio")


@dataclass(frozen=True, repr=False)
class Comparison:
    """Result of :func:`scstate_lora.tl.compare`, as tables.

    Parameters
    ----------
    scores
        Scores of the predictions, means over the seeds: ``model``, ``target``, ``context``, ``metric``, ``value``,
        ``skill``, ``ci_low`` and ``ci_high``, ``interval`` (what the 95 % interval is over: ``"seeds"``,
        ``"contexts"``, ``"targets"``, or nothing), ``n_seeds``, and columns as of :func:`evaluate_perturbation`.
    by_seed
        Scores of every seed; baselines have the seed -1.
    training
        One row per variant and seed: parameters, and what :func:`stability` measures.
    criteria
        One row per variant and criterion: ``value``, ``side`` and ``threshold``, ``met`` (``"yes"``, ``"no"``,
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
        """One row per model, baselines included: main scores, stability, size, time and memory, means over the seeds.

        The Pearson correlation of the change comes with its 95 % interval and its skill.
        """
        targets = list(dict.fromkeys(self.scores["target"]))
        main = self.scores[
            (self.scores["target"] == (ALL if ALL in targets else targets[0])) & (self.scores["context"] == ALL)
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
