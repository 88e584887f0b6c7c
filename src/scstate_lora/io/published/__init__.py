"""Published checkpoints: their files, read without running anything in them, and their layout of tensors."""
