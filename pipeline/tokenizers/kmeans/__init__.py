"""Tokenizers of numpy alone: k-means of patches."""
