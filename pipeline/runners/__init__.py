"""Runners map shard tasks onto machines; they know nothing of images or tokens."""
