"""What values mean as labels and metadata, and how a label is made from a path."""
