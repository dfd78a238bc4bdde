"""The right half of the hourglass: classifiers that learn from token shards alone."""
