"""Where pictures are decoded on a cluster: beside the tokenizer, or on the CPUs of other nodes. A decision from measured rates."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["DecodeRates", "Placement", "choose_placement"]

ENOUGH = 0.9
"""Decoding that reaches this share of the encoder's rate is no bottleneck worth a network."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodeRates:
    """What one actor was measured at, in images per second, and what the cluster has left."""

    decode: float
    """With all decoding threads of the actor."""
    decode_per_cpu: float
    encode: float
    network: float | None
    """Decoded pictures that an actor receives from another node; None where it was not measured."""
    idle_cpus: int
    """CPUs of the cluster that no actor holds."""
    actors: int

    @property
    def network_matters(self) -> bool:
        """Whether the decision hangs on the network, so that measuring it is worth a task on another node."""
        return self.decode < ENOUGH * self.encode and self.idle_cpus >= 1


@dataclass(frozen=True, slots=True)
class Placement:
    """`remote` or not, and why, in words for the person who started the job."""

    remote: bool
    why: str


def choose_placement(rates: DecodeRates) -> Placement:
    """Return where to decode. Remote only where decoding holds the encoder up, idle CPUs are there, and the network carries the pixels."""
    measured = f"an actor decodes {rates.decode:,.0f} and encodes {rates.encode:,.0f} images/s"
    if rates.decode >= ENOUGH * rates.encode:
        return Placement(False, f"{measured}, so decoding beside the tokenizer keeps up")
    if rates.idle_cpus < 1:
        wanted = rates.actors * rates.encode / max(1e-9, rates.decode_per_cpu)
        return Placement(
            False,
            f"{measured}: decoding is the limit, and no CPU is idle. About {wanted:,.0f} CPUs in all would feed the encoders",
        )
    if rates.network is None:
        return Placement(False, f"{measured}: decoding is the limit, but the network could not be measured")
    elsewhere = min(rates.network, rates.idle_cpus * rates.decode_per_cpu / max(1, rates.actors))
    if elsewhere <= rates.decode:
        limit = "the network carries" if rates.network <= rates.decode else f"{rates.idle_cpus} idle CPUs would decode"
        return Placement(False, f"{measured}: decoding is the limit, but {limit} only {elsewhere:,.0f} images/s for an actor")
    return Placement(
        True, f"{measured}; {rates.idle_cpus} idle CPUs decode {elsewhere:,.0f} images/s for each actor, and the network carries them"
    )
