"""The commands of the pipeline, one module per group. At their top these modules import only typer and the standard library."""
