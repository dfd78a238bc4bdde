"""Any fsspec store: whole objects in and out, listings, retries, and words without secrets."""
