from __future__ import annotations

import numpy as np
import pytest
from scipy import sparse

from scstate_lora.metrics.components import sparse_pca


@pytest.mark.parametrize(("shape", "expected"), [((30, 20), 5), ((4, 20), 3), ((30, 3), 2), ((2, 2), 1)])
def test_as_many_components_as_the_matrix_has(shape, expected):
    x = sparse.random(*shape, density=0.5, format="csr", random_state=0)
    assert sparse_pca(x, 5).transform(x).shape == (shape[0], expected)


def test_coordinates_are_those_of_the_centred_matrix():
    x = sparse.random(40, 12, density=0.5, format="csr", random_state=0)
    coordinates = sparse_pca(x, 3, seed=1).transform(x)
    centred = x.toarray() - x.toarray().mean(axis=0)
    singular = np.linalg.svd(centred, compute_uv=False)[:3]
    np.testing.assert_allclose(np.linalg.norm(coordinates, axis=0), singular, rtol=1e-8)
