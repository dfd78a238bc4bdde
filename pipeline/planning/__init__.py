"""Which input belongs to which shard: the frozen plan, made once."""
