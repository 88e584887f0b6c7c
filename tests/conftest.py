from __future__ import annotations

import os

# One thread, set before torch and numpy are loaded: sums in one order, so that equal runs give equal bits.
os.environ["OMP_NUM_THREADS"] = "1"
