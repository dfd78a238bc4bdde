"""What a training learns: classification."""
