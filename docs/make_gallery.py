"""Make the pictures of the gallery: train small models on the example data, and draw what came out, light and dark.

``make gallery`` runs it, offline, in a few minutes, and writes ``docs/_static/gallery/<plot>-<style>.png``, which
gallery.md shows. Names of plots as arguments draw these only.
"""

from __future__ import annotations

import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

import scstate_lora as ssl
from scstate_lora import pl

if TYPE_CHECKING:
    from collections.abc import Callable

    from anndata import AnnData

FOLDER = Path(__file__).parent / "_static" / "gallery"
STYLES = {"light": "default", "dark": "dark_background"}
DOTS_PER_INCH = 100
LARGEST = 60_000  # bytes of a picture: more would weigh on the repository
HELD_OUT = ["macrophage", "fibroblast", "endothelial"]
DAYS = (10, 12, 14, 16, 19)


@dataclass
class Runs:
    """What the plots are drawn from."""

    wound: AnnData
    se: Any
    st: Any
    pred: AnnData
    responses: pd.DataFrame
    by_day: pd.DataFrame
    information: pd.DataFrame
    comparison: Any
    blood: AnnData

    @classmethod
    def make(cls) -> Runs:
        """Train both models on a simulated wound, its burned cells of three types held out, and label blood cells."""
        adata = ssl.datasets.wound_healing(5000, n_genes=400, days=DAYS)
        se, st = ssl.setup_anndata(
            adata,
            covariate_keys=["condition", "timepoint"],
            pert_key="condition",
            control="sham",
            cell_type_key="cell_type",
            batch_key="mouse_id",
            holdout=[{"cell_type": name, "condition": "burn"} for name in HELD_OUT],
        )
        se.train(mhc=True)
        se.get_latent_representation()
        st.train()
        pred = st.predict(target="burn", contexts={"cell_type": HELD_OUT})
        is_test = (adata.obs["condition"] == "burn") & adata.obs["cell_type"].isin(HELD_OUT)
        train, real = adata[adata.obs["scstate_split"] == "train"], adata[is_test]
        ssl.tl.evaluate_perturbation(pred, real=real, control=adata, context_key="cell_type", train=train)
        ssl.tl.velocity_alignment(adata, pred)
        by_day = []
        for day in DAYS:
            today = adata.obs["time_days"] == day
            own = pred[adata.obs["time_days"].loc[pred.obs["control_cell"]].to_numpy() == day].copy()
            table = ssl.tl.responses(own, real=adata[is_test & today], control=adata[today], context_key="cell_type")
            by_day.append(table.assign(day=day))
        return cls(
            wound=adata,
            se=se,
            st=st,
            pred=pred,
            responses=ssl.tl.responses(pred, real=real, control=adata, context_key="cell_type"),
            by_day=pd.concat(by_day, ignore_index=True),
            information=ssl.tl.covariate_information(se),
            comparison=ssl.tl.compare(adata, variants=["zero-shot", "ST", "ST-LoRA", "ST-LoRA-mHC"], seeds=[0, 1]),
            blood=label_blood(),
        )


def label_blood() -> AnnData:
    """Train an embedding on blood cells, and predict every cell's label by a classifier that has not seen the cell."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import cross_val_predict

    adata = ssl.datasets.pbmc68k()
    se = ssl.setup_anndata(adata, covariate_keys=["phase"], cell_type_key="bulk_labels").se
    se.train()
    embedding = se.get_latent_representation()
    classes = adata.obs["bulk_labels"].cat.categories
    shares = cross_val_predict(
        LogisticRegression(max_iter=2000), embedding, adata.obs["bulk_labels"].cat.codes, cv=5, method="predict_proba"
    )
    adata.obs["predicted"] = pd.Categorical(classes[shares.argmax(axis=1)], categories=classes)
    adata.obs["confidence"] = shares.max(axis=1)
    return adata


LABELS = {"true_key": "bulk_labels", "pred_key": "predicted"}
PLOTS: dict[str, Callable[[Runs], Any]] = {
    "loss_curves": lambda runs: pl.loss_curves(runs.st, terms=[]),
    "embedding": lambda runs: pl.embedding(runs.wound, color="cell_type"),
    "covariate_effects": lambda runs: pl.covariate_effects(runs.information, covariate="timepoint", ax=new(5.6, 3.4)),
    "shift": lambda runs: pl.shift(runs.pred, runs.wound, context_key="cell_type"),
    "gene_response": lambda runs: pl.gene_response(runs.responses),
    "responders": lambda runs: pl.responders(runs.responses),
    "temporal": lambda runs: pl.temporal(runs.by_day, time_key="day", n_panels=3),
    "scores": lambda runs: pl.scores(runs.pred),
    "metrics": lambda runs: pl.metrics(runs.pred, metric=["pearson_delta", "e_distance"]),
    "compare": lambda runs: pl.compare(runs.comparison, kind="criteria"),
    "velocity_alignment": lambda runs: pl.velocity_alignment(runs.pred, group_key="cell_type"),
    "mhc_mixing": lambda runs: pl.mhc_mixing(runs.se),
    "celltype_accuracy": lambda runs: pl.celltype_accuracy(runs.blood, **LABELS),
    "confusion": lambda runs: pl.confusion(runs.blood, **LABELS),
    "calibration": lambda runs: pl.calibration(runs.blood, **LABELS, confidence_key="confidence"),
}


def new(width: float, height: float) -> Any:
    """Make Axes of a size, in inches."""
    return plt.subplots(figsize=(width, height), layout="constrained")[1]


def draw(runs: Runs, names: list[str], folder: Path = FOLDER) -> None:
    """Write every plot in both styles, in few colours, as a picture of a gallery needs no more."""
    from PIL import Image

    folder.mkdir(parents=True, exist_ok=True)
    for style, of_matplotlib in STYLES.items():
        for name in names:
            path = folder / f"{name}-{style}.png"
            with plt.style.context(of_matplotlib):
                figure = np.ravel(np.asarray(PLOTS[name](runs), dtype=object))[0].figure
                figure.savefig(path, dpi=DOTS_PER_INCH, bbox_inches="tight")
                plt.close(figure)
            Image.open(path).convert("RGB").quantize(128).save(path, optimize=True)
            if path.stat().st_size > LARGEST:
                sys.exit(f"{path} has {path.stat().st_size:,} bytes, over {LARGEST:,}: draw less, or smaller.")


if __name__ == "__main__":
    mpl.use("agg")
    unknown = set(sys.argv[1:]) - set(PLOTS)
    if unknown:
        sys.exit(f"There are no plots {sorted(unknown)}; there are {', '.join(PLOTS)}.")
    with tempfile.TemporaryDirectory() as runs_folder:
        ssl.settings.run_dir = runs_folder
        draw(Runs.make(), sys.argv[1:] or list(PLOTS))
