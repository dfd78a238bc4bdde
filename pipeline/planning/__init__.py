"""The frozen plan: which input belongs to which shard. It is made once."""
