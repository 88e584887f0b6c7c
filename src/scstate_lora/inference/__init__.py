"""Networks applied to cells without gradients, reading the next block while the current one is computed."""
