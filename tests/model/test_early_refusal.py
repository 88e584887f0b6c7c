"""A mistaken column is named before torch is loaded, which takes seconds."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.builders import wound

_PYTHON = """
import sys
import anndata
import scstate_lora as ssl

adata = anndata.read_h5ad(sys.argv[1])
try:
    ssl.setup_anndata(adata, pert_key="conditon", control="sham")
except KeyError as error:
    print(error.args[0], "torch" in sys.modules)
"""
_COMMAND = """
import sys
from scstate_lora import cli

sys.argv = ["scstate-lora", "run", sys.argv[1], *{options!r}, "--out", sys.argv[1] + ".out"]
try:
    cli.main()
except SystemExit as stopped:
    print(stopped.code, "torch" in sys.modules)
"""


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("cells") / "wound.h5ad"
    wound(200).write_h5ad(path)
    return path


@pytest.fixture(scope="module")
def loaded():
    """Whether anndata itself loads torch, as version 0.11 does."""
    script = "import sys, anndata; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def _call(script, file):
    done = subprocess.run([sys.executable, "-c", script, str(file)], capture_output=True, text=True, check=True)
    return done.stdout, done.stderr


def test_set_up_names_a_mistaken_column_without_torch(file, loaded):
    printed, _ = _call(_PYTHON, file)
    assert "'condition'" in printed
    assert printed.endswith(f"{loaded}\n")


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--covariates", "conditon"], "'condition'"),
        (["--covariates", "condition", "--pert-key", "condition", "--control", "shem"], "--control 'shem'"),
        (["--covariates", "condition", "--cell-type-key", "celltype"], "'cell_type'"),
        (["--covariates", "condition", "--holdout", "celltype=macrophage"], "'cell_type'"),
    ],
)
def test_the_command_names_a_mistaken_option_without_torch(file, loaded, options, named):
    printed, message = _call(_COMMAND.format(options=options), file)
    assert named in message
    assert printed == f"2 {loaded}\n"
