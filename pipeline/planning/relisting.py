"""A fresh look at the source for `repair`: remake a lost plan part, and check whether a redone shard would lose rows."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tokenshards.pipeline.config import SourceConfig
from tokenshards.pipeline.errors import TokenshardsError
from tokenshards.pipeline.planning.plan import Plan, PlanPart, read_shard_rows
from tokenshards.pipeline.planning.planner import Listing, relist_parts
from tokenshards.pipeline.planning.retry_plan import rows_to_retry
from tokenshards.pipeline.records import PlanRow
from tokenshards.pipeline.sources import open_source, source_root
from tokenshards.pipeline.sources.mask_folder import mask_store
from tokenshards.pipeline.storage.store import Store

__all__ = ["Relisting"]


class Relisting:
    """The current state of a dataset's source; `url` is its new place if it moved."""

    def __init__(self, store: Store, chain: list[Plan], url: str | None, storage_options: dict[str, Any]) -> None:
        self._store = store
        self._chain = chain
        self._url = url or str(chain[0].source["url"])
        self._config = chain[0].source_config(SourceConfig(storage_options=storage_options))

    def parts(self, plan: Plan, wanted: list[PlanPart]) -> dict[str, bytes]:
        """Return path -> bytes of the wanted parts, without parts whose inputs changed. Raises the errors of listing."""
        plan.refuse_newer()
        rows, keep_order = self._rows(plan)
        settings: dict[str, Any] = {"order_seed": plan.order_seed, "keep_order": keep_order, "sample": 0, "sample_seed": 0}
        with Listing(rows, **settings, mask_files=plan.has_mask_files) as listing:
            return relist_parts(listing, plan, plan.config, self._config.tars_per_shard, {part.path: part for part in wanted})

    def _rows(self, plan: Plan) -> tuple[Iterator[PlanRow], bool]:
        if plan.generation == 1:
            listed = open_source(self._url, self._config)
            return listed.list_rows(), listed.ordered
        before = self._chain[plan.generation - 2]
        source = source_root(self._url, self._config)
        return rows_to_retry(self._store, source, before, before.shard_numbers, mask_store(source, self._config.masks)), False

    def lost_if_redone(self, plan: Plan, shard: int) -> str | None:
        """Return why a redone shard would lose rows permanently, None if it would not.

        A redone shard quarantines every input that changed since the plan. In the last generation `retry-failed` tries these inputs again.
        In an older generation only the inputs that the next generation has retried are safe.
        """
        try:
            plan.refuse_newer()
            if plan is self._chain[-1]:
                return None
            following = self._chain[plan.generation]
            retried = {row.sample_id for later in following.shard_numbers for row in read_shard_rows(self._store, following, later)}
            source = source_root(self._url, self._config)
            masks = mask_store(source, self._config.masks)
            for row in read_shard_rows(self._store, plan, shard):
                if row.version == "" or (row.kind == "file" and row.sample_id in retried):
                    continue
                info = source.info(row.path)
                masked = masks is not None and row.mask_path is not None
                mask = masks.info(row.mask_path) if masks is not None and row.mask_path is not None else None
                changed_mask = masked and (mask is None or mask.version != row.mask_version)
                if info is None or info.version != row.version or changed_mask:
                    return f"{row.path} has changed since generation {plan.generation} was planned, so its rows would be lost"
        except TokenshardsError as error:
            return f"its source cannot be checked ({error})"
        return None
