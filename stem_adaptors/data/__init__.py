"""Shards become batches of ids: order, cache, prefetch, state."""
