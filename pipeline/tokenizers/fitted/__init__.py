"""Tokenizers that are trained or fitted here with torch."""
