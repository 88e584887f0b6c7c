from __future__ import annotations

import numpy as np
from scipy import sparse

from scstate_lora.tl.scoring.cells import Cells
from scstate_lora.tl.scoring.training import Training


def test_hidden_cells_are_left_out_in_one_order():
    """Sets of names have another order in every process; sums in another order differ in the last bit."""
    rng = np.random.default_rng(0)
    expression = sparse.csr_matrix(rng.exponential(size=(60, 40)).astype(np.float32))
    names = np.array([f"cell{i}" for i in range(60)], dtype=object)
    arms = np.array(["none"] * 40 + ["drug"] * 20, dtype=object)
    cells = Cells(expression, np.full(60, "A", dtype=object), arms, names)
    hidden = list(names[:20])
    means = []
    for order in (hidden, hidden[::-1], list(rng.permutation(hidden))):
        left = Training(cells, control="none").without(tuple(order))
        means.append(left.deltas["drug", "A"])
    np.testing.assert_allclose(means[0], (expression[40:].mean(axis=0) - expression[20:40].mean(axis=0)).A1, atol=1e-6)
    np.testing.assert_array_equal(means[1], means[0])
    np.testing.assert_array_equal(means[2], means[0])
