"""One import name."""
