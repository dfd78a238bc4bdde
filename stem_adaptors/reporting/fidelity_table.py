"""The fidelity of a fitted TokenAdapt as the rows of a table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["fidelity_rows", "fidelity_warning"]

_MOVES = {"flip": "mirror", "rotation": "rotation by 15°", "crop": "random crop", "colour": "other colours"}
_WAYS = {
    "token_adapt": "TokenAdapt",
    "direct_sites": "ids moved to the nearest site",
    "direct_codes": "code vectors moved, nearest code",
    "nothing": "nothing done",
}


def fidelity_rows(fidelity: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return (name, value) text: for each map and way the share of right ids; of several levels each one, and of whole sites."""
    rows = []
    for move, ways in fidelity.items():
        for way, shares in ways.items():
            levels = shares["levels"]
            parts = (
                f"  (levels {', '.join(f'{share:.1%}' for share in levels)}; whole sites {shares['sites']:.1%})" if len(levels) > 1 else ""
            )
            rows.append((f"{_MOVES[move]}: {_WAYS[way]}", f"{shares['ids']:.1%}{parts}"))
    return rows


def fidelity_warning(fidelity: Mapping[str, Any]) -> str | None:
    """Return a sentence where moving ids or code vectors directly gives as many right ids as TokenAdapt; None where nothing does."""
    behind = []
    for move, ways in fidelity.items():
        direct = max(shares["ids"] for way, shares in ways.items() if way != "token_adapt")
        if ways["token_adapt"]["ids"] <= direct:
            behind.append(f"{_MOVES[move]} ({ways['token_adapt']['ids']:.1%} against {direct:.1%})")
    if not behind:
        return None
    return (
        f"note: TokenAdapt is no better than moving ids or codes directly after: {', '.join(behind)}. Give more --epochs, more images or "
        "a larger --width before you train with it"
    )
