"""`compare`: tokenizers side by side on the same images: bytes, fidelity, speed, and what a classifier learns from their tokens."""
