"""What is said of a memory before any training."""

from __future__ import annotations

from tokenshards.stem_adaptors.continual.replay_memory import quotas
from tokenshards.stem_adaptors.continual.understood import _kept


def test_a_quota_above_what_a_class_has_is_all_of_it() -> None:
    assert _kept(quotas(2007, 2), 450) == "all" and _kept(quotas(2007, 8), 450) == "250 to 251" and _kept(quotas(8, 8), 450) == "1"
