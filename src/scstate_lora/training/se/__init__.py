"""Training of LoRACovariateSE: batches, loss terms, the compact base."""
