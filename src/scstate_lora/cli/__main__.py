"""`python -m scstate_lora.cli`."""

from __future__ import annotations

from scstate_lora.cli import main

main()
