"""Variants of STTransition on one split: trained, scored, tabulated."""
