"""Training: what a step computes, where batches come from, and the Lightning run around them."""
