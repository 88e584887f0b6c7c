from __future__ import annotations

import os

# One thread, set before torch and numba are loaded: sums in one order, so that equal runs give equal bits. Numba as
# well, as its threads would raise torch's number again.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["NUMBA_NUM_THREADS"] = "1"
