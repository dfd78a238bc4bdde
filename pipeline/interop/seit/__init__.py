"""Import and export of SeiT's release layout."""
