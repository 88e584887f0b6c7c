from __future__ import annotations

import torch

from scstate_lora._tensors import compare_tensors


def test_every_difference_is_one_line_and_values_and_precision_do_not_count() -> None:
    with torch.device("meta"):
        expected = {name: torch.empty(2, 3) for name in ("same", "half", "lost", "wide", "whole")}
    stored = {"same": torch.ones(2, 3), "half": torch.ones(2, 3).half(), "wide": torch.ones(2, 4)}
    stored |= {"more": torch.ones(5), "whole": torch.ones(2, 3, dtype=torch.int64)}
    assert compare_tensors(expected, stored) == [
        "missing: lost (2, 3)",
        "unexpected: more (5,)",
        "shape: wide is (2, 4), expected (2, 3)",
        "type: whole is torch.int64, expected torch.float32",
    ]
