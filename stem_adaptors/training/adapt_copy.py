"""The fitted TokenAdapt of a training: a run keeps a copy in RUN/tokenadapt/, and its configuration names the copy and its digest.

So a run resumes on a machine that never had the original, goes on with no other one, and is measured without any.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import nn

from tokenshards.pipeline.errors import ConfigError, MissingObjectError
from tokenshards.pipeline.named_code import PREFIX
from tokenshards.pipeline.storage.store import Store
from tokenshards.stem_adaptors.augment.adapt_file import copy_adapter, read_about
from tokenshards.stem_adaptors.augment.language import parse_operations, text_of
from tokenshards.stem_adaptors.augment.operation import Operation
from tokenshards.stem_adaptors.augment.token_adapt import TokenAdapt
from tokenshards.stem_adaptors.config import AugmentConfig

__all__ = ["COPY", "AdaptCopy", "absolute_files"]

COPY = "tokenadapt"
"""Folder of the copy in a run directory, and what the run's `token_adapt(file=...)` says."""


class AdaptCopy:
    """Finds the fitted TokenAdapt that a training names, once, on every rank alike."""

    def __init__(self, augment: AugmentConfig, recorded: AugmentConfig | None, out: Store, storage_options: Mapping[str, Any]) -> None:
        """`recorded`: the augmentation of the run to continue.

        Raises NotFoundError where nothing is at the place named; ConfigError for several of them, and where a resumed run names another
        one than it was started with.
        """
        self.augment = augment
        """The configuration that a run records: it names the copy and its digest."""
        self.note: str | None = None
        self._source: tuple[Store, str] | None = None
        self._out = out
        self._new = recorded is None
        operations = _operations(augment)
        found = _members(operations)
        if not found:
            return
        files = sorted({operation.file for operation in found})
        if len(files) > 1:
            raise ConfigError(f"augment.ops names {len(files)} fitted TokenAdapts ({', '.join(files)}); expected one for a training")
        kept = {operation.sha256 for operation in _members(_operations(recorded))} if recorded is not None else set()
        digest = self._found(files[0], kept, storage_options)
        for operation in found:
            operation.options = {**operation.options, "file": COPY, "sha256": digest}
        self.augment = replace(augment, ops=text_of(operations))

    def _found(self, file: str, kept: set[str], storage_options: Mapping[str, Any]) -> str:
        """Return the digest of the fitted file. A resumed run reads its own copy, and needs the original for nothing."""
        original = Store(file, storage_options=dict(storage_options))
        try:
            digest = read_about(original).sha256
        except MissingObjectError:
            if not kept:
                raise
            self.note = f"{original.url} is not there; the run goes on with its copy, {self._out.url}/{COPY}"
            digest = next(iter(kept))
        if kept and digest not in kept:
            raise ConfigError(
                f"--resume: the fitted TokenAdapt in {original.url} is {digest[:12]}…; this run was started with {next(iter(kept))[:12]}…, "
                f"of which {self._out.url}/{COPY} is a copy. Give that copy, or start a new run in another directory"
            )
        self._source = (self._out, f"{COPY}/") if kept else (original, "")
        return digest

    def give(self, objective: nn.Module) -> None:
        """Let the operations of an objective read the networks. Raises what `TokenAdapt.load_from` raises."""
        if self._source is not None:
            for module in objective.modules():
                if isinstance(module, TokenAdapt):
                    module.load_from(*self._source)

    def save(self) -> None:
        """Write the copy of a new run."""
        if self._source is not None and self._new:
            copy_adapter(*self._source, self._out, f"{COPY}/")


def absolute_files(augment: AugmentConfig, absolute: Any) -> AugmentConfig:
    """Return the configuration with what `absolute` makes of the place of a fitted TokenAdapt."""
    operations = _operations(augment)
    found = _members(operations)
    for operation in found:
        operation.options = {**operation.options, "file": absolute(operation.file)}
    return replace(augment, ops=text_of(operations)) if found else augment


def _operations(augment: AugmentConfig | None) -> list[Operation]:
    """Return the operations of a text. Code of a user is not called here: a fitted file that it names is its own affair."""
    return parse_operations(augment.ops) if augment is not None and augment.ops and not augment.ops.startswith(PREFIX) else []


def _members(operations: list[Operation]) -> list[TokenAdapt]:
    return [member for operation in operations for member in operation.members() if isinstance(member, TokenAdapt)]
