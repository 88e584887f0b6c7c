"""The package against arc-state's own numbers, for tiny checkpoints in every form it writes (see tests/data/arc)."""

from __future__ import annotations

from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch
from scipy import sparse

import scstate_lora as ssl
from scstate_lora.data.genes import match_vocabulary

ARC = Path(__file__).parents[1] / "data" / "arc"
FORMS = {
    "folder": ("folder", "expected"),
    "folder, the file itself": ("folder/se_tiny_epoch16.ckpt", "expected"),
    "folder, an earlier epoch": ("folder/se_tiny_epoch4.ckpt", "expected_epoch4"),
    "folder, safetensors": ("folder/model.safetensors", "expected"),
    "ckpt with everything inside": ("ckpt_embedded/model.ckpt", "expected"),
    "ckpt with nothing inside": ("ckpt_bare/model.ckpt", "expected"),
    "ckpt of a training": ("ckpt_trained/model.ckpt", "expected"),
    "compiled": ("compiled/model.ckpt", "expected"),
    "safetensors": ("safetensors", "expected"),
    "no dataset correction": ("no_dataset/model.ckpt", "expected"),
    "no read depth": ("no_rda/model.ckpt", "expected"),
    "no counts": ("no_counts/model.ckpt", "expected"),
}
# float32 on other kernels in another order: the largest difference found is 5e-7.
TOLERANCE = 1e-5


@pytest.fixture(scope="module", params=FORMS)
def form(request):
    """A base, and what arc-state makes of the same model."""
    path, expected = FORMS[request.param]
    path = ARC / path
    folder = path if path.is_dir() else path.parent
    return ssl.SEBase.load(path), np.load(folder / f"{expected}.npz", allow_pickle=False)


def _cells(expected, name):
    return ad.AnnData(
        sparse.csr_matrix(expected[f"{name}_x"]),
        obs=pd.DataFrame(index=expected[f"{name}_cells"].tolist()),
        var=pd.DataFrame(index=expected[f"{name}_genes"].tolist()),
    )


@pytest.mark.parametrize("name", ["exact", "free", "few", "low", "log"])
def test_network_gives_arcs_embedding_of_arcs_sentences(form, name):
    base, expected = form
    tokens = torch.from_numpy(expected[f"{name}_tokens"].astype(np.int64))
    with torch.inference_mode():
        embedding = base.encoder(tokens[:, 1:], torch.from_numpy(expected[f"{name}_values"]))
    np.testing.assert_allclose(embedding.numpy(), expected[f"{name}_embedding"], atol=TOLERANCE)


def test_embed_gives_arcs_embedding_where_the_sentence_is_not_random(form):
    base, expected = form
    for name in ("exact", "log"):
        embedding = ssl.tl.embed(_cells(expected, name), base, progress_bar=False)
        np.testing.assert_allclose(embedding, expected[f"{name}_embedding"], atol=TOLERANCE)


def test_embed_gives_arcs_embedding_of_shallow_cells_only_with_its_guess_for_every_cell(form):
    base, expected = form
    assert not expected["low_taken_for_counts"].all()  # though all are
    guessed = ssl.tl.embed(_cells(expected, "low"), base, arc_per_cell_scale=True, progress_bar=False)
    np.testing.assert_allclose(guessed, expected["low_embedding"], atol=TOLERANCE)
    decided_once = ssl.tl.embed(_cells(expected, "low"), base, progress_bar=False)
    if base.encoder.config.counts:
        assert np.abs(decided_once - guessed).max() > 1e-4


@pytest.mark.parametrize("name", ["free", "few"])
def test_random_sentences_agree_in_all_that_is_not_random(form, name):
    """The expressed genes above the cut are arc-state's, with its values; only ties and padding differ."""
    base, expected = form
    cells = _cells(expected, name)
    match = match_vocabulary(cells, base.genes)
    x = cells.X.copy()
    x.data = np.log1p(x.data)
    seeds = np.arange(x.shape[0], dtype=np.uint32)
    genes, values, lengths = base.tokenizer(match)(x, seeds)
    shown = sparse.csr_matrix(x[:, match.columns])
    np.testing.assert_allclose(values[:, 0], expected[f"{name}_values"][:, 0], rtol=1e-5)
    for cell in range(x.shape[0]):
        theirs = expected[f"{name}_tokens"][cell, 1:], expected[f"{name}_values"][cell, 1:]
        row = shown[cell].toarray().ravel()
        highest = np.sort(row)[::-1][: lengths[cell]]
        if not len(highest):
            continue
        above = row > highest[-1] if lengths[cell] == genes.shape[1] else row > 0
        certain = set(match.vocabulary[above])
        ours_of, theirs_of = dict(zip(genes[cell], values[cell, 1:], strict=True)), dict(zip(*theirs, strict=True))
        assert certain <= set(ours_of)
        assert certain <= set(theirs_of)
        for gene in certain:
            assert ours_of[gene] == pytest.approx(theirs_of[gene], rel=1e-5)
        assert set(genes[cell]) <= set(match.vocabulary)


def test_decoder_gives_arcs_predictions(form):
    base, expected = form
    cells = _cells(expected, "exact")
    cells.obsm["X_state"] = expected["exact_embedding"]
    decoded = ssl.tl.decode_expression(
        cells,
        base,
        genes=expected["decoder_genes"].tolist(),
        read_depth=float(expected["read_depth"]),
        progress_bar=False,
    )
    np.testing.assert_allclose(decoded.X, expected["exact_predictions"], atol=TOLERANCE)
    assert list(decoded.var_names) == expected["decoder_genes"].tolist()


def test_sizes_are_read_from_the_file(form):
    base, expected = form
    config = base.encoder.config
    for name in ("token_dim", "d_model", "n_layers", "n_heads", "d_hid", "output_dim", "n_tokens"):
        assert getattr(config, name) == expected[name]
    for name in ("counts", "rda", "dataset_correction"):
        assert getattr(config, name) == bool(expected[name])
    assert len(base.genes) == expected["n_genes"]
