"""The commands of the pipeline, one module for each group; only typer and the standard library load at their top."""
