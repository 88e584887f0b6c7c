"""STTransition against the truth, on simulated cells: beside the mean shift and what the measured cells would score.

    python benchmarks/simulated.py wound --cells 30000 --days 10 12 14 16 19 --day 14
    python benchmarks/simulated.py screen
    python benchmarks/simulated.py velocity --cells 6000

wound
    Burned cells of a cell type, on all days, are left out; and of a day, in all cell types. Scored by the correlation
    of the predicted delta with the noise-free one: the mean of the same control cells under burn minus their own, both
    log1p of counts per 10,000 without sampling. "by day": the mean over cell types and days of their correlations.
    "days together": of a left-out type all control cells and all that is predicted of them make one delta.
    "measured": the difference of the cells that were left out, which sampling and the logarithm of noisy counts keep
    from 1.
screen
    A fifth of the perturbations is left out and predicted from features. Discrimination score by cosine, correlation
    with the measured and with the noise-free delta.
velocity
    Trained with and without the true RNA velocity of the control cells in the loss: median cosine of a control cell's
    predicted shift with its velocity, and the correlation of delta on cells held out at random. Burn against sham is
    another direction than a cell's near future, so the two pull apart.
"""

from __future__ import annotations

import argparse
import logging
import time

import numpy as np
import pandas as pd
import torch

import scstate_lora as ssl
from scstate_lora.data import log_expression
from scstate_lora.metrics import mean_shift, pearson_delta


def wound(args: argparse.Namespace) -> None:
    adata = ssl.datasets.wound_healing(args.cells, days=args.days, seed=args.data_seed)
    folds = [("time", {"timepoint": f"day{args.day}", "condition": "burn"})]
    folds += [("cell type", {"cell_type": cell_type, "condition": "burn"}) for cell_type in args.types]
    rows = []
    for what, left in folds:
        for seed in args.seeds:
            rows += _wound_fold(adata.copy(), what, left, seed=seed, prior=args.prior)
    table = pd.DataFrame(rows)
    print(f"\n{args.cells} cells; Pearson of delta with the noise-free one")
    table["left out"] = np.where(table["left out"] == "time", "time", table["cell_type"])
    table["over"] = np.where(table["day"] == "all", "days together", "by day")
    shown = table.groupby(["over", "left out", "model"])["pearson"].agg(["mean", "std", "min", "size"])
    print(shown.round(3).to_string())


def _wound_fold(adata, what: str, left: dict[str, str], *, seed: int, prior: str) -> list[dict]:
    truth = adata.layers["mean_other_condition"] - adata.layers["mean"]
    ssl.STTransition.setup_anndata(
        adata,
        covariate_keys={"time_days": "continuous"},
        pert_key="condition",
        control="sham",
        cell_type_key="cell_type",
        context_keys=["cell_type", "time_days"],
        holdout=left,
    )
    start = time.perf_counter()
    st = ssl.STTransition(adata, model={"prior": prior}, seed=seed)
    st.train(progress_bar=False, logger=False)
    context = {key: value for key, value in left.items() if key != "condition"}
    predicted = st.predict(target="burn", contexts=context)
    seconds = time.perf_counter() - start
    logged = log_expression(adata).toarray()
    train = (adata.obs["scstate_split"] != "test").to_numpy()
    burn = (adata.obs["condition"] == "burn").to_numpy()
    rows = []
    together = []
    keys = ["cell_type", "timepoint"]
    for (cell_type, day), group in adata.obs.groupby(keys, observed=True):
        here = adata.obs_names.isin(group.index)
        control, real = here & ~burn, here & burn
        made = predicted.X[predicted.obs["control_cell"].isin(adata.obs_names[control]).to_numpy()]
        if not len(made):
            continue
        before, true = logged[control].mean(0), truth[control].mean(0)
        # The mean shift of the other types on this day, or of this type on the other days.
        near = (adata.obs["timepoint"] == day) if what == "cell type" else (adata.obs["cell_type"] == cell_type)
        deltas = [
            logged[cells & burn].mean(0) - logged[cells & ~burn].mean(0)
            for _, others in adata.obs[near.to_numpy() & train].groupby(keys, observed=True)
            if ((cells := adata.obs_names.isin(others.index) & train) & burn).any() and (cells & ~burn).any()
        ]
        scores = {
            "STTransition": made.mean(0),
            "mean shift": mean_shift(logged[control], deltas).mean(0),
            "measured": logged[real].mean(0),
        }
        for model, mean in scores.items():
            pearson = pearson_delta(mean, before + true, before)
            rows.append({"left out": what, "model": model, "cell_type": cell_type, "day": day, "pearson": pearson})
        together.append((control.sum(), before, before + true, scores))
    if what == "cell type":
        n_cells, before, true, means = zip(*together, strict=True)
        before, true = (np.average(part, axis=0, weights=n_cells) for part in (before, true))
        for model in means[0]:
            mean = np.average([scores[model] for scores in means], axis=0, weights=n_cells)
            about = {"left out": what, "model": model, "cell_type": left["cell_type"], "day": "all"}
            rows.append({**about, "pearson": pearson_delta(mean, true, before)})
    print(f"{what} {left}, seed {seed}: {seconds:.0f} s; {st.prior_note}", flush=True)
    return rows


def screen(args: argparse.Namespace) -> None:
    adata = ssl.datasets.perturbation_screen(seed=args.data_seed)
    features = adata.uns["perturbation_features"]
    names = sorted(set(adata.obs["perturbation"].astype(str)) & set(features.index))
    control = next(iter(set(adata.obs["perturbation"].astype(str)) - set(features.index)))
    for seed in args.seeds:
        left = [str(n) for n in np.random.default_rng(seed).permutation(names)[: len(names) // 5]]
        cells = adata.copy()
        ssl.STTransition.setup_anndata(
            cells,
            pert_key="perturbation",
            control=control,
            cell_type_key="cell_type",
            holdout={"perturbation": left},
        )
        start = time.perf_counter()
        st = ssl.STTransition(cells, pert_features=features, model={"prior": args.prior}, seed=seed)
        st.train(progress_bar=False, logger=False)
        predicted = st.predict(target=left)
        seconds = time.perf_counter() - start
        test, train = (cells[(cells.obs["scstate_split"] == "test") == is_test] for is_test in (True, False))
        table = ssl.tl.discrimination(
            predicted, test, cells, train=train, context_key="cell_type", pert_features=features, name="STTransition"
        )
        shown = table[(table["perturbation"] == "all") & (table["context"] == "all")]
        print(f"\nseed {seed}, {len(left)} of {len(names)} perturbations left out, {seconds:.0f} s")
        print(shown.pivot_table(index="model", columns="metric", values="value", observed=True).round(3).to_string())
        truth = ssl.datasets.perturbation_screen_truth(cells, perturbations=["control", *left])
        print(f"correlation with the noise-free delta: {_against(truth, predicted, cells, control):.3f}", flush=True)


def velocity(args: argparse.Namespace) -> None:
    rows = []
    for seed in args.seeds:
        for name, objective in (
            ("without", {}),
            ("direction", {"velocity_key": "velocity", "velocity_beta": 0.0}),
            ("direction and length", {"velocity_key": "velocity"}),
            ("direction, weight 1", {"velocity_key": "velocity", "velocity_beta": 0.0, "velocity": 1.0}),
        ):
            adata = ssl.datasets.wound_healing(args.cells, seed=args.data_seed)
            ssl.STTransition.setup_anndata(
                adata,
                covariate_keys=["timepoint"],
                pert_key="condition",
                control="sham",
                cell_type_key="cell_type",
                seed=seed,
            )
            st = ssl.STTransition(adata, model={"prior": args.prior}, objective=objective, seed=seed)
            start = time.perf_counter()
            st.train(progress_bar=False, logger=False)
            seconds = time.perf_counter() - start
            predicted = st.predict(target="burn")
            table = ssl.tl.velocity_alignment(adata, predicted)
            test = adata[adata.obs["scstate_split"] == "test"]
            train = adata[adata.obs["scstate_split"] != "test"]
            scores = ssl.tl.evaluate_perturbation(predicted, test, adata, train=train, context_key="cell_type")
            own = scores[(scores["model"] == "model") & (scores["context"] == "all")].set_index("metric")["value"]
            rows.append(
                {
                    "loss": name,
                    "seed": seed,
                    "cosine": table["cosine"].median(),
                    "pearson_delta": own["pearson_delta"],
                    "e_distance": own["e_distance"],
                    "s": seconds,
                }
            )
            print(rows[-1], flush=True)
    print(
        pd.DataFrame(rows).groupby("loss", sort=False).mean(numeric_only=True).drop(columns="seed").round(3).to_string()
    )


def _against(truth: pd.DataFrame, predicted, cells, control: str) -> float:
    """Mean correlation over perturbations and cell types of the predicted delta and the noise-free one."""
    logged = log_expression(cells)
    positions = [cells.var_names.get_loc(gene) for gene in predicted.var_names]
    found = []
    for (name, cell_type), true in truth.drop(index="control", level=0).iterrows():
        rows = ((predicted.obs["perturbation"] == name) & (predicted.obs["cell_type"] == cell_type)).to_numpy()
        controls = ((cells.obs["perturbation"] == control) & (cells.obs["cell_type"] == cell_type)).to_numpy()
        before = np.asarray(logged[np.flatnonzero(controls)].mean(axis=0)).ravel()[positions]
        effect = (true - truth.loc[("control", cell_type)]).to_numpy()[positions]
        found.append(np.corrcoef(predicted.X[rows].mean(0) - before, effect)[0, 1])
    return float(np.mean(found))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    commands = parser.add_subparsers(required=True)
    for name, run in (("wound", wound), ("screen", screen), ("velocity", velocity)):
        command = commands.add_parser(name)
        command.set_defaults(run=run)
        command.add_argument("--seeds", type=int, nargs="+", default=[0])
        command.add_argument("--data-seed", type=int, default=0)
        command.add_argument("--prior", default="context")
        if name != "screen":
            command.add_argument("--cells", type=int, default={"wound": 30_000, "velocity": 6000}[name])
        if name == "wound":
            command.add_argument("--types", nargs="+", default=["macrophage", "fibroblast", "keratinocyte"])
            command.add_argument("--day", type=int, default=14)
            command.add_argument("--days", type=int, nargs="+", default=[10, 12, 14, 16, 19])
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    logging.getLogger("scstate_lora").setLevel(logging.WARNING)
    args.run(args)


if __name__ == "__main__":
    main()
