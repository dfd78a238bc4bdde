"""Decide from measured rates where a cluster decodes images: beside the tokenizer, or on the CPUs of other nodes."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["DecodeRates", "Placement", "choose_placement"]

ENOUGH = 0.9
"""If decoding reaches this share of the encoder's rate, decoding on other nodes is not worth the network traffic."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodeRates:
    """The measured rates of one actor, in images per second, and the idle CPUs of the cluster."""

    decode: float
    """Rate of all decoding threads of the actor together."""
    decode_per_cpu: float
    encode: float
    network: float | None
    """Decoded images that an actor receives from another node; None if not measured."""
    idle_cpus: int
    """CPUs of the cluster that no actor holds."""
    actors: int

    @property
    def network_matters(self) -> bool:
        """True if the decision depends on the network, so that a measurement by a task on another node is worth its cost."""
        return self.decode < ENOUGH * self.encode and self.idle_cpus >= 1


@dataclass(frozen=True, slots=True)
class Placement:
    """Whether to decode on other nodes, and the reason for the person who started the job."""

    remote: bool
    why: str


def choose_placement(rates: DecodeRates) -> Placement:
    """Return where to decode: remote only if decoding delays the encoder, CPUs are idle, and the network can carry the pixels."""
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
