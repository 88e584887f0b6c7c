"""What scores of predictions are computed from."""
