"""What all torch tokenizers share: devices, weights, code search."""
