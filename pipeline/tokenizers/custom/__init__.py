"""Tokenizers that a user brings: TorchScript programs and Python callables."""
