"""Shared by all torch tokenizers: devices, weights, code search."""
