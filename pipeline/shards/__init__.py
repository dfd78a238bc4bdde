"""The on-disk contract. `from pipeline.shards import open_dataset` is the public door; SPEC.md is the text."""
