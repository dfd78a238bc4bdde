"""Tars and zips: walk over headers, settle rules at planning, read samples."""
