"""Pickles read without running code: a table of allowed names, and the records they describe."""
