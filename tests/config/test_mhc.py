from __future__ import annotations

import pytest

from scstate_lora.config import MHCConfig


def test_what_is_asked_for():
    assert MHCConfig.requested(mhc=False) is None
    assert MHCConfig.requested(None) is None
    assert MHCConfig.requested(mhc=True) == MHCConfig()
    assert MHCConfig.requested({"n_streams": 2}) == MHCConfig(n_streams=2)
    options = MHCConfig(kind="features")
    assert MHCConfig.requested(options) is options


def test_what_is_not_understood_raises():
    with pytest.raises(TypeError, match="mhc must be True, False, a dict or MHCConfig, found str"):
        MHCConfig.requested("streams")
    with pytest.raises(ValueError, match=r"mhc: there is no option 'streams'.*'n_streams'"):
        MHCConfig.requested({"streams": 4})
    with pytest.raises(ValueError, match="mhc: sinkhorn_iters=0 is not allowed"):
        MHCConfig.requested({"sinkhorn_iters": 0})
