"""One shard: its inputs, its batches, its files, its commit."""
