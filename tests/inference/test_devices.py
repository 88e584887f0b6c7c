from __future__ import annotations

import pytest
import torch

from scstate_lora.inference.devices import check_accelerator, choose_device


@pytest.fixture
def _no_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)


@pytest.mark.usefixtures("_no_gpu")
@pytest.mark.parametrize("accelerator", ["gpu", "cuda", "mps"])
def test_absent_accelerator_raises(accelerator):
    with pytest.raises(ValueError, match=f"accelerator='{accelerator}', but PyTorch sees no such device"):
        check_accelerator(accelerator)
    check_accelerator("cpu")


@pytest.mark.usefixtures("_no_gpu")
def test_absent_or_unknown_device_raises():
    with pytest.raises(ValueError, match=r"device='gpu' is unknown\. Use 'cpu', 'cuda'"):
        choose_device("gpu")
    with pytest.raises(ValueError, match="device='cuda:1', but PyTorch sees no cuda"):
        choose_device("cuda:1")
    assert choose_device(None) == choose_device("cpu") == torch.device("cpu")
