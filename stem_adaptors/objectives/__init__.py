"""Objectives of training: classification."""
