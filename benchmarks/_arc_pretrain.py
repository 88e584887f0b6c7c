"""Train arc-state's ``state_sm``, made narrower, by its own ``tx train``: run by a Python that has arc-state.

    path/to/python _arc_pretrain.py SPLIT.toml OUT --steps 300 --control ctrl ...

``OUT`` is then a model folder as ``tx train`` leaves it. With ``--steps 1 --lr 0`` it holds the weights it starts from.
"""

from __future__ import annotations

import argparse
import logging
import os
import warnings
from pathlib import Path

from state.__main__ import load_hydra_config
from state._cli import run_tx_train

from _arc_st_worker import BACKBONE, narrower


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("split", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--lr", type=float, default=1e-4)
    parser.add_argument("--hidden", type=int, default=128)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--set-len", type=int, default=64)
    parser.add_argument("--sets", type=int, default=8)
    parser.add_argument("--pert-key", default="condition")
    parser.add_argument("--control", default="ctrl")
    parser.add_argument("--cell-type-key", default="cell_type")
    parser.add_argument("--batch-key", default="replicate")
    a = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    os.environ["HYDRA_FULL_ERROR"] = "1"
    run_tx_train(
        load_hydra_config(
            "tx",
            [
                *narrower(set_len=a.set_len, hidden=a.hidden, layers=a.layers, heads=a.heads, lr=a.lr),
                f"+{BACKBONE}vocab_size=8",  # of a table that is never read: 32,000 rows of zeros otherwise
                *(f"data.kwargs.toml_config_path={a.split}", f"data.kwargs.control_pert={a.control}"),
                *(f"data.kwargs.pert_col={a.pert_key}", f"data.kwargs.cell_type_key={a.cell_type_key}"),
                *(f"data.kwargs.batch_col={a.batch_key}", "data.kwargs.num_workers=0", "data.kwargs.pin_memory=false"),
                *(f"training.max_steps={a.steps}", f"training.val_freq={a.steps}"),
                *(f"training.batch_size={a.sets}", "use_wandb=false"),
                *(f"output_dir={a.out.parent}", f"name={a.out.name}"),
            ],
        )
    )


if __name__ == "__main__":
    main()
