"""Import and export of other projects' token files. Each format is loaded only on use."""
