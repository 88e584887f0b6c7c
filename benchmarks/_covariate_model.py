"""Cells, their split, and the embeddings to compare: PCA, the base, LoRACovariateSE, scVI."""

from __future__ import annotations

import ast
import hashlib
import json
import subprocess
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import scanpy as sc

import scstate_lora as ssl

if TYPE_CHECKING:
    import argparse
    from collections.abc import Mapping, Sequence

    from anndata import AnnData

SPLIT = "benchmark_split"
BASE = "X_scstate_base"
PCA = "X_pca"
_PARTS = ("setup", "model", "lora", "conditioning", "objective", "compact", "train")


@dataclass
class Settings:
    """What the command line says of the model."""

    covariates: dict[str, str]
    cell_type_key: str | None = None
    batch_key: str | None = None
    base_cache: Path | None = None
    options: dict[str, dict[str, Any]] = field(default_factory=lambda: {part: {} for part in _PARTS})

    @classmethod
    def of(cls, args: argparse.Namespace, adata: AnnData) -> Settings:
        """Read the arguments that `add_arguments` added; kinds that are not given are those the package guesses."""
        pairs = [entry.partition(":")[::2] for entry in args.covariates.split(",") if entry]
        covariates = {key: kind or _guess(adata.obs[key]) for key, kind in pairs}
        settings = cls(covariates, args.cell_type_key, args.batch_key, args.base_cache)
        for entry in args.set:
            name, _, value = entry.partition("=")
            part, _, option = name.partition(".")
            if part not in _PARTS or not option or not value:
                msg = f"--set {entry}: expected PART.OPTION=VALUE with PART one of {', '.join(_PARTS)}."
                raise SystemExit(msg)
            settings.options[part][option] = _value(value)
        return settings


def add_arguments(
    parser: argparse.ArgumentParser, *, covariates: str | None = None, cell_type_key: str | None = None
) -> None:
    """Add the arguments that say what the model is."""
    parser.add_argument(
        "--covariates",
        required=covariates is None,
        default=covariates,
        help="columns of obs, a,b or a:continuous,b; '' for none",
    )
    parser.add_argument("--cell-type-key", default=cell_type_key)
    parser.add_argument("--batch-key")
    parser.add_argument("--base-cache", type=Path, metavar="DIR", help="keep compact bases here between runs")
    parser.add_argument(
        "--set", nargs="+", default=[], metavar="PART.OPTION=VALUE", help="options of the model: train.max_epochs=5"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--csv", type=Path)


def _value(text: str) -> Any:
    try:
        return ast.literal_eval({"true": "True", "false": "False", "none": "None"}.get(text.lower(), text))
    except (ValueError, SyntaxError):  # a plain string
        return text


def strata(adata: AnnData, keys: Sequence[str | None]) -> np.ndarray:
    """Join columns of obs to one label a cell."""
    columns = [adata.obs[key].astype(str) for key in dict.fromkeys(keys) if key]
    return np.array([" | ".join(values) for values in zip(*columns, strict=True)], dtype=object)


def draw(groups: np.ndarray, candidates: np.ndarray, share: float, *, seed: int) -> np.ndarray:
    """Draw a share of the candidates in every group, as bool; a group never loses its last cell."""
    rng = np.random.default_rng(seed)
    drawn = np.zeros(len(groups), dtype=bool)
    for group in sorted(set(groups[candidates])):
        members = rng.permutation(np.flatnonzero((groups == group) & candidates))
        drawn[members[: min(int(share * len(members) + rng.random()), len(members) - 1)]] = True
    return drawn


def set_split(adata: AnnData, test: np.ndarray, groups: np.ndarray) -> None:
    """Write the split, with a tenth of the training cells to validate, and a PCA fitted on the training cells."""
    val = draw(groups, ~test, 0.1, seed=1)
    adata.obs[SPLIT] = pd.Categorical(np.select([test, val], ["test", "val"], "train"))
    logged = adata.copy()
    sc.pp.normalize_total(logged, target_sum=1e4)
    sc.pp.log1p(logged)
    fitted = logged[~test].copy()
    sc.pp.pca(fitted, n_comps=min(50, fitted.n_vars - 1, fitted.n_obs - 1), random_state=0)
    mean = np.asarray(fitted.X.mean(axis=0)).ravel()
    adata.obsm[PCA] = np.asarray(logged.X @ fitted.varm["PCs"] - mean @ fitted.varm["PCs"], dtype=np.float32)


def trained(adata: AnnData, settings: Settings, *, seed: int) -> ssl.LoRACovariateSE:
    """Train a model on the training cells of the split; the compact base comes from the cache where it is there."""
    options = settings.options
    ssl.LoRACovariateSE.setup_anndata(
        adata,
        covariate_keys=settings.covariates,
        cell_type_key=settings.cell_type_key,
        batch_key=settings.batch_key,
        split_key=SPLIT,
        seed=seed,
        **options["setup"],
    )
    cached = None
    if settings.base_cache is not None and not {"base", "embed_key"} & {*options["model"], *options["setup"]}:
        cached = settings.base_cache / _fingerprint(adata, options["compact"], seed)
    parts = {name: options[name] for name in ("lora", "conditioning", "objective", "compact") if options[name]}
    given = options["model"] | ({"base": ssl.SEBase.load(cached)} if cached is not None and cached.exists() else {})
    se = ssl.LoRACovariateSE(adata, **parts, **given, seed=seed)
    if cached is not None and not cached.exists():  # before the training, which may be stopped
        se.train_base(progress_bar=False)
        cached.parent.mkdir(parents=True, exist_ok=True)
        se.base.save(cached)
    se.train(**{"progress_bar": False} | options["train"])
    return se


def _guess(column: pd.Series) -> str:
    return "continuous" if pd.api.types.is_numeric_dtype(column) and column.nunique() > 8 else "categorical"


def _fingerprint(adata: AnnData, compact: Mapping[str, Any], seed: int) -> str:
    """Name what a compact base depends on: cells, genes, split, options and seed."""
    digest = hashlib.sha256(json.dumps([seed, dict(compact)], sort_keys=True, default=str).encode())
    for part in (adata.X.data, adata.X.indices, adata.X.indptr):
        digest.update(np.ascontiguousarray(part).data.cast("B"))
    for names in (adata.obs_names, adata.var_names, adata.obs[SPLIT].astype(str)):
        digest.update("\n".join(names).encode())
    return digest.hexdigest()[:24]


def embedded(se: ssl.LoRACovariateSE, adata: AnnData) -> np.ndarray:
    """Embed all cells under their own covariates; writes the base's plain embedding too."""
    adata.obsm.pop(BASE, None)
    return se.get_latent_representation(adata)


def withheld(se: ssl.LoRACovariateSE, adata: AnnData, key: str) -> tuple[np.ndarray | None, str]:
    """Embed all cells without telling the model one covariate, or say why that failed."""
    try:
        return se.get_latent_representation(adata, covariates={key: None}, key_added=None), ""
    except (ValueError, TypeError, KeyError) as error:
        return None, f"{type(error).__name__}: {error}"


def scvi_embedding(
    python: str, adata: AnnData, batch_key: str | None, *, seed: int, n_threads: int
) -> tuple[np.ndarray, float]:
    """Train scVI on the training cells in another environment; the embedding of all cells, and the seconds taken."""
    with tempfile.TemporaryDirectory() as folder:
        cells, out = Path(folder) / "cells.h5ad", Path(folder) / "embedding.npy"
        slim = sc.AnnData(adata.X, obs=adata.obs[[k for k in (SPLIT, batch_key) if k]].copy(), var=adata.var[[]])
        slim.write_h5ad(cells)
        worker = Path(__file__).with_name("_scvi_worker.py")
        command = [python, str(worker), str(cells), str(out), "--split-key", SPLIT, "--seed", str(seed)]
        command += ["--threads", str(n_threads), *(["--batch-key", batch_key] if batch_key else [])]
        start = time.perf_counter()
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            msg = f"{' '.join(command)} failed:\n{done.stderr[-3000:]}"
            raise RuntimeError(msg)
        return np.load(out), time.perf_counter() - start
