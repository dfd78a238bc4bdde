"""Curves and progress of a training run."""
