"""The demonstration: the main job on a simulated wound and on real blood cells, and one page on both."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scstate_lora import datasets
from scstate_lora.config import RunConfig
from scstate_lora.reporting import experiment, write_page
from scstate_lora.workflow import run

if TYPE_CHECKING:
    from pathlib import Path

# Their burned cells are held out; the test is to predict them.
_HELD_OUT = ("macrophage", "fibroblast", "endothelial")


def run_demo(folder: Path) -> None:
    """Run both experiments, each in its own folder, and write ``report.html``; an earlier demonstration is replaced."""
    wound = run(
        datasets.wound_healing(2500, n_genes=400),
        RunConfig.parse(
            {
                "data": {
                    "covariate_keys": ["condition", "timepoint"],
                    "pert_key": "condition",
                    "control": "sham",
                    "cell_type_key": "cell_type",
                    "batch_key": "mouse_id",
                    "holdout": [{"cell_type": name, "condition": "burn"} for name in _HELD_OUT],
                },
                "se": {"compact": {"n_steps": 300, "n_tokens": 129}, "conditioning": {"n_steps": 300}},
            },
            name="demo",
        ),
        folder / "wound_healing",
        overwrite=True,
    )
    blood = run(
        datasets.pbmc68k(),
        RunConfig.parse(
            {
                "data": {"covariate_keys": ["phase"], "cell_type_key": "bulk_labels"},
                "se": {"compact": {"n_steps": 300, "n_tokens": 129}, "conditioning": {"n_steps": 300}},
            },
            name="demo",
        ),
        folder / "pbmc68k",
        overwrite=True,
    )
    experiments = [
        experiment(wound.adata, wound.models, wound.predictions, name="Simulated wound"),
        experiment(blood.adata, blood.models, name="Blood cells"),
    ]
    write_page(folder / "report.html", experiments, title="scstate_lora: the demonstration")
