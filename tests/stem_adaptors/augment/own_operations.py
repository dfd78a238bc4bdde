"""Operations as users write them: what tests name with `python:`."""

from __future__ import annotations

from tokenshards.pipeline.shards.spec import Layout
from tokenshards.stem_adaptors.augment.numbers import Draw, Numbers
from tokenshards.stem_adaptors.augment.operation import Data, Operation
from tokenshards.stem_adaptors.augment.state import TokenState


class Fade(Operation):
    """Scales a sample down by a random share."""

    def __init__(self, amount: float = 0.5) -> None:
        super().__init__()
        self.amount = amount

    def draws(self, data: Data) -> tuple[Draw, ...]:
        return (Draw("fade"),)

    def forward(self, state: TokenState, numbers: Numbers) -> TokenState:
        share_B = numbers.uniform("fade")[:, 0]
        x = state.embeddings
        return state._replace(x=x * (1 - self.amount * share_B).view(-1, *[1] * (x.ndim - 1)))


class Reverse(Operation):
    """Reverses the sites; works on ids."""

    stage = "ids"

    def refusal(self, layout: Layout) -> str | None:
        return "sites of varying number cannot be reversed" if layout.variable else None

    def forward(self, state: TokenState, numbers: Numbers) -> TokenState:
        return state._replace(ids_BLQ=state.ids_BLQ.flip(1))


def both() -> list[Operation]:
    return [Reverse(), Fade(amount=1.0)]


def broken() -> Operation:
    raise ValueError("no such luck")


def number() -> int:
    return 3
