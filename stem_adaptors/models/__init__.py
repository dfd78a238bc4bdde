"""Embedding, stems and backbones."""
