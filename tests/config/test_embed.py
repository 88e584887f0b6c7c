from __future__ import annotations

import numpy as np
import pytest

from scstate_lora.config import EmbedOptions


@pytest.mark.parametrize("n_tokens", [64, np.int64(64), "64"])
def test_a_number_of_tokens_may_be_text(n_tokens):
    assert EmbedOptions(n_tokens=n_tokens).n_tokens == 64
    assert EmbedOptions(n_tokens="expressed").n_tokens == "expressed"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size=0 is not allowed: .*greater than or equal to 1"),
        ({"n_workers": 1.5}, r"n_workers=1\.5 is not allowed"),
        ({"precision": "float32"}, "precision='float32' is not allowed. .*'fp32'"),
        ({"n_tokens": 1}, "n_tokens: 1 must be a whole number, at least 2, or 'expressed'"),
        ({"n_tokens": 2.5}, r"n_tokens: 2\.5 must be a whole number"),
        ({"n_tokens": "all"}, "n_tokens: 'all' must be a whole number"),
        ({"n_tokens": "-5"}, "n_tokens: '-5' must be a whole number"),
    ],
)
def test_options_that_make_no_sense_raises(options, message):
    with pytest.raises(ValueError, match=rf"^embed\(\): .*{message}"):
        EmbedOptions.of_call(options, function="embed()")
