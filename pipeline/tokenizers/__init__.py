"""Tokenizers: one module for each family, found by name in the registry, saved as a directory of JSON and safetensors."""
