"""Tokenizers: one file per family, found by name in the registry, saved as a directory of JSON and safetensors."""

from tokenshards.pipeline.tokenizers.base import DecodeNotSupported, Tokenizer, codebook_sha256
from tokenshards.pipeline.tokenizers.directory import load_statistics, load_tokenizer, resolve_tokenizer, save_tokenizer
from tokenshards.pipeline.tokenizers.registry import families, load_family

__all__ = [
    "DecodeNotSupported",
    "Tokenizer",
    "codebook_sha256",
    "families",
    "load_family",
    "load_statistics",
    "load_tokenizer",
    "resolve_tokenizer",
    "save_tokenizer",
]
