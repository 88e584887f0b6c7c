"""The side of arc-state in ``st_against_arc.py``: run by a Python that has arc-state, and nothing of ours."""

from __future__ import annotations

import contextlib
import logging
import time
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import state.tx.models.state_transition  # noqa: F401  (otherwise imported, and counted, with the model)
import torch
from omegaconf import OmegaConf
from state.__main__ import load_hydra_config
from state.tx.utils import get_lightning_module

from _random_sets import make_batches
from _serve import own_memory, peak_memory, serve

if TYPE_CHECKING:
    from collections.abc import Iterator

    from state.tx.models.state_transition import StateTransitionPerturbationModel

BACKBONE = "model.kwargs.transformer_backbone_kwargs."
CLIP = 10.0
"""``gradient_clip_val`` of arc-state's ``tx train``."""


class Tasks:
    """What can be asked for."""

    def prepare(self, sizes: dict[str, Any]) -> dict[str, int]:
        """Make the model, its optimiser and batches; how many numbers it trains, and how many it has."""
        self.before = peak_memory()
        torch.manual_seed(0)
        self.model = make_model(**{k: sizes[k] for k in ("n_genes", "n_perts", "set_len", "hidden", "layers", "heads")})
        self.optimizer = torch.optim.AdamW((p for p in self.model.parameters() if p.requires_grad), lr=1e-4)
        self.batches = [
            {
                "ctrl_cell_emb": torch.from_numpy(made["control"]).flatten(0, 1),
                "pert_cell_emb": torch.from_numpy(made["target"]).flatten(0, 1),
                "pert_emb": torch.from_numpy(made["pert"]).repeat_interleave(sizes["set_len"], dim=0),
            }
            for made in make_batches(**{k: sizes[k] for k in ("n_sets", "set_len", "n_genes", "n_perts")})
        ]
        sized = list(self.model.parameters())
        return {
            "trained": sum(p.numel() for p in sized if p.requires_grad),
            "all": sum(p.numel() for p in sized),
        }

    def steps(self, n_steps: int) -> dict[str, float]:
        """Train for some steps; seconds, and the most memory so far and before the model was made."""
        start = time.perf_counter()
        for i in range(n_steps):
            loss = self.model.training_step(self.batches[i % len(self.batches)], i)
            self.optimizer.zero_grad()  # here, as Lightning has it, which `tx train` leaves alone
            loss.backward()
            self.optimizer.step()
        seconds = time.perf_counter() - start
        if not torch.isfinite(loss):
            msg = "The loss is not finite."
            raise ValueError(msg)
        return {"seconds": seconds, "before": self.before, "peak": peak_memory(), "own": own_memory()}

    def fold(self, path: str, out: str, sizes: dict[str, Any], seconds: float, seed: int) -> dict[str, float]:
        """Train on a table of cells for a given time and predict the held-out cells.

        The table has ``x`` ``(n_cells, n_genes)``, codes ``types`` and ``perts`` (0 is the control) and ``train``. As
        ``tx train`` does, every group of cell type and perturbation, the control included, is cut into sets, with a
        random control cell of the type for every cell, and each epoch sees all of them. Optimiser, learning rate and
        clipping are those of ``tx train``.

        Writes one array for each held-out perturbation, ``pert_<code>``: every control cell of its type perturbed.
        """
        cells = np.load(path)
        torch.manual_seed(seed)
        rng = np.random.default_rng(seed)
        n_perts = int(cells["perts"].max()) + 1
        model = make_model(n_genes=cells["x"].shape[1], n_perts=n_perts, **{k: sizes[k] for k in _NETWORK})
        optimizer = model.configure_optimizers()
        onehot = np.eye(n_perts, dtype=np.float32)
        n_sets, set_len = sizes["n_sets"], sizes["set_len"]
        n_steps, start = 0, time.perf_counter()
        losses = []
        while time.perf_counter() - start < seconds:
            for control, target in epoch(cells, rng, n_sets=n_sets, set_len=set_len):
                batch = {
                    "ctrl_cell_emb": torch.from_numpy(cells["x"][control]),
                    "pert_cell_emb": torch.from_numpy(cells["x"][target]),
                    "pert_emb": torch.from_numpy(onehot[cells["perts"][target]]),
                }
                loss = model.training_step(batch, n_steps)
                optimizer.zero_grad()
                loss.backward()
                torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
                optimizer.step()
                losses.append(float(loss.detach()))
                n_steps += 1
                if time.perf_counter() - start >= seconds:
                    break
        trained = time.perf_counter() - start
        model.eval()
        held = ~cells["train"]
        (kind,) = np.unique(cells["types"][held])
        controls = np.flatnonzero((cells["types"] == kind) & (cells["perts"] == 0))
        predicted = {}
        for pert in np.unique(cells["perts"][held]):
            windows = np.array_split(rng.permutation(controls), -(-len(controls) // set_len))
            predicted[f"pert_{pert}"] = np.concatenate(
                [predict(model, cells["x"][window], onehot[pert]) for window in windows]
            )
        np.savez(out, **predicted)
        tenth = max(1, n_steps // 10)
        return {
            "steps": n_steps,
            "seconds": trained,
            "first_loss": float(np.mean(losses[:tenth])),
            "last_loss": float(np.mean(losses[-tenth:])),
        }


_NETWORK = ("set_len", "hidden", "layers", "heads", "lr")


def narrower(*, set_len: int, hidden: int, layers: int, heads: int, lr: float) -> list[str]:
    """Say to ``tx train`` that it is ``state_sm`` in other sizes, for cells in ``X_hvg``."""
    return [
        *("model=state_sm", "data.kwargs.embed_key=X_hvg", "data.kwargs.output_space=gene"),
        *(f"model.kwargs.hidden_dim={hidden}", f"model.kwargs.cell_set_len={set_len}", f"training.lr={lr}"),
        *(f"{BACKBONE}num_hidden_layers={layers}", f"{BACKBONE}intermediate_size={4 * hidden}"),
        *(f"{BACKBONE}num_attention_heads={heads}", f"{BACKBONE}num_key_value_heads={heads}"),
        f"{BACKBONE}head_dim={hidden // heads}",
    ]


def make_model(
    *, n_genes: int, n_perts: int, set_len: int, hidden: int, layers: int, heads: int, lr: float = 1e-4
) -> StateTransitionPerturbationModel:
    """Make ``state_sm`` in other sizes, as ``tx train`` makes it for cells in ``X_hvg``."""
    overrides = narrower(set_len=set_len, hidden=hidden, layers=layers, heads=heads, lr=lr)
    cfg = OmegaConf.to_container(load_hydra_config("tx", overrides), resolve=True)
    dims = {"input_dim": n_genes, "output_dim": n_genes, "hvg_dim": n_genes, "gene_dim": n_genes, "pert_dim": n_perts}
    model = get_lightning_module(
        cfg["model"]["name"],
        cfg["data"]["kwargs"],
        cfg["model"]["kwargs"],
        cfg["training"],
        {**dims, "batch_dim": 1, "gene_names": [f"GENE{i}" for i in range(n_genes)]},
    )
    model.log = lambda *_, **__: None  # there is no trainer to log to
    return model.train()


def epoch(
    cells: Any, rng: np.random.Generator, *, n_sets: int, set_len: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Rows of control and target cells, ``(n_sets * set_len,)``, of every training set once, in random order."""
    types, perts, train = (cells[key] for key in ("types", "perts", "train"))
    sets = []
    for kind, pert in sorted({(int(t), int(p)) for t, p in zip(types[train], perts[train], strict=True)}):
        rows = rng.permutation(np.flatnonzero(train & (types == kind) & (perts == pert)))
        controls = np.flatnonzero(train & (types == kind) & (perts == 0))
        for first in range(0, len(rows), set_len):
            chosen = rows[first : first + set_len]
            if len(chosen) < set_len:  # as its sampler fills a set up
                chosen = rng.choice(chosen, set_len)
            sets.append((rng.choice(controls, set_len), chosen))
    order = rng.permutation(len(sets))
    for first in range(0, len(sets), n_sets):
        chosen = [sets[i] for i in order[first : first + n_sets]]
        yield np.concatenate([c for c, _ in chosen]), np.concatenate([t for _, t in chosen])


def predict(model: Any, control: np.ndarray, onehot: np.ndarray) -> np.ndarray:
    """Predict one set of cells, of any number, as ``tx infer`` does."""
    batch = {
        "ctrl_cell_emb": torch.from_numpy(control),
        "pert_emb": torch.from_numpy(onehot)[None].repeat(len(control), 1),
    }
    with torch.no_grad():
        return model.predict_step(batch, 0, padded=False)["preds"].numpy()


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    logging.basicConfig(level=logging.WARNING)
    with contextlib.suppress(KeyboardInterrupt):
        serve(Tasks())
