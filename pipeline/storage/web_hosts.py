"""Web clients for the hosts that a table names: only public addresses on request, and short timeouts for silent hosts.

The client checks the address when it creates the socket, so the checked address is the connected one. A redirect, a numeric address, or a
name that resolves differently the second time cannot get around the check.
"""

from __future__ import annotations

import socket
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # aiohttp may be missing if all data is on disk
    import aiohttp

__all__ = ["CONNECT_SECONDS", "READ_SECONDS", "PrivateHostError", "any_client", "is_public", "public_client"]

CONNECT_SECONDS = 10.0
READ_SECONDS = 30.0
"""Silence after which a connection counts as dead."""
_NAT64 = ip_network("64:ff9b::/96")


class PrivateHostError(OSError):
    """A host has an address that is not public. The text names no address: aiohttp raises this error only if all its texts are equal."""

    def __init__(self) -> None:
        super().__init__("the address of this host is not public")


def is_public(address: str) -> bool:
    """Return whether an IP address is reachable for everybody: not private, loopback, link-local, shared, reserved or multicast."""
    parsed: IPv4Address | IPv6Address = ip_address(address.partition("%")[0])
    if isinstance(parsed, IPv6Address):
        inside = parsed.ipv4_mapped or parsed.sixtofour or (IPv4Address(parsed.packed[-4:]) if parsed in _NAT64 else None)
        parsed = inside or parsed
    return parsed.is_global and not parsed.is_multicast


def _public_socket(found: Any) -> socket.socket:
    family, kind, protocol, _, place = found
    if not is_public(str(place[0])):
        raise PrivateHostError
    return socket.socket(family=family, type=kind, proto=protocol)


async def public_client(**options: Any) -> aiohttp.ClientSession:
    """Return a client that connects only to public addresses; fsspec takes this function as `get_client`."""
    return _client({"socket_factory": _public_socket}, options)


async def any_client(**options: Any) -> aiohttp.ClientSession:
    """Return a client that connects to any address."""
    return _client({}, options)


def _client(connecting: dict[str, Any], options: dict[str, Any]) -> aiohttp.ClientSession:
    import aiohttp

    bounds = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS, sock_read=READ_SECONDS)
    return aiohttp.ClientSession(**{"timeout": bounds, **options, "connector": aiohttp.TCPConnector(**connecting)})
