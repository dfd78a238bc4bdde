"""Image sources: folders, tars and tables on any fsspec store. They yield plan rows for the plan, then records for the work."""

from tokenshards.pipeline.sources.base import ImageSource, read_file_row
from tokenshards.pipeline.sources.labels.values import LabelType, MetaType
from tokenshards.pipeline.sources.location import expand_braces, open_source, source_root
from tokenshards.pipeline.sources.slices import read_slice
from tokenshards.pipeline.sources.summary import SourceSummary

__all__ = [
    "ImageSource",
    "LabelType",
    "MetaType",
    "SourceSummary",
    "expand_braces",
    "open_source",
    "read_file_row",
    "read_slice",
    "source_root",
]
