"""The training loop, its checkpoints and its runs."""
