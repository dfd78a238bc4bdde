"""Fixtures of this room."""

from tests.pipeline.sources.web_server import web

__all__ = ["web"]
