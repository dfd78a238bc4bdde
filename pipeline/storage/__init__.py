"""Access to any fsspec store: whole objects in and out, listings, retries, and messages without secrets."""
