"""Seconds and memory of training, each way in a fresh process."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch

import scstate_lora as ssl
from _covariate_model import PCA, SPLIT, Settings, set_split, strata
from scstate_lora.training.callbacks import peak_memory_mb

if TYPE_CHECKING:
    import argparse

    from anndata import AnnData

WAYS = ("compact base", "embed_key")


def run(args: argparse.Namespace) -> pd.DataFrame:
    """Time each way in a process of its own."""
    rows = []
    for way in WAYS:
        script = Path(__file__).with_name("covariates.py")
        command = [sys.executable, str(script), *sys.argv[1:], "--one", way]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            rows.append({"way": way, "note": done.stderr.strip().splitlines()[-1][:300]})
        else:
            rows.append(json.loads(done.stdout.strip().splitlines()[-1]))
    return pd.DataFrame(rows)


def one(adata: AnnData, args: argparse.Namespace) -> dict[str, Any]:
    """Train once; what is timed is setup, base, training and embedding, not the making of cells and PCA."""
    settings = Settings.of(args, adata)
    set_split(adata, np.zeros(adata.n_obs, dtype=bool), strata(adata, [settings.cell_type_key]))
    options = settings.options
    if args.one == "embed_key":
        options["setup"]["embed_key"] = PCA
    at_start = peak_memory_mb(torch.device("cpu"))
    marks = [time.perf_counter()]
    ssl.LoRACovariateSE.setup_anndata(
        adata,
        covariate_keys=settings.covariates,
        cell_type_key=settings.cell_type_key,
        batch_key=settings.batch_key,
        split_key=SPLIT,
        **options["setup"],
    )
    parts = {name: options[name] for name in ("lora", "conditioning", "objective", "compact") if options[name]}
    se = ssl.LoRACovariateSE(adata, **parts, **options["model"])
    marks.append(time.perf_counter())
    if args.one == "compact base":
        se.train_base(progress_bar=False)
    marks.append(time.perf_counter())
    se.train(**{"progress_bar": False} | options["train"])
    marks.append(time.perf_counter())
    se.get_latent_representation(adata)
    marks.append(time.perf_counter())
    seconds = dict(zip(("setup s", "base s", "train s", "embed s"), np.diff(marks).tolist(), strict=True))
    peak = peak_memory_mb(torch.device("cpu"))
    return {"way": args.one, "cells": adata.n_obs, **seconds, "peak MB": peak, "before MB": at_start}
