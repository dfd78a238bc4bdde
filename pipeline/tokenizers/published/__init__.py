"""Published tokenizers, one module for each family of checkpoints."""
