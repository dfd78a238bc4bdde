"""Submit `tokenize` as a job to a Ray cluster."""
