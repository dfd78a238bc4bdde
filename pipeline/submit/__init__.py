"""`tokenize` as a job of a Ray cluster."""
