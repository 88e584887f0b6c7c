"""The classifier of cells, and the bases that it stands on."""
