"""Runners map shard tasks onto machines. Runners know nothing about images or tokens."""
