"""Images in buckets become verified shards of discrete tokens; see pipeline/shards/SPEC.md for the contract."""

from importlib.metadata import PackageNotFoundError, version

__all__ = ["__version__"]

try:
    __version__ = version("tokenshards")
except PackageNotFoundError:  # a source tree that was never installed
    __version__ = "0.0.0+source"
