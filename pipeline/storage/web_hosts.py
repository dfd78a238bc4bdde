"""Web clients for the hosts that a table names: only public addresses on request, and downloads with limits of bytes and of time.

The client checks the address when it creates the socket, so the checked address is the connected one. A redirect, a numeric address, or a
name that resolves differently the second time cannot get around the check.
"""

from __future__ import annotations

import asyncio
import socket
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

from fsspec.asyn import sync

if TYPE_CHECKING:  # aiohttp may be missing if all data is on disk
    import aiohttp

__all__ = [
    "CONNECT_SECONDS",
    "READ_SECONDS",
    "BodyTooLargeError",
    "Download",
    "PrivateHostError",
    "any_client",
    "is_public",
    "public_client",
]

CONNECT_SECONDS = 10.0
READ_SECONDS = 30.0
"""Silence after which a connection counts as dead."""
NAME_THREADS = 32
"""Names of hosts to look up at once."""
GRACE_SECONDS = 30.0
"""How much later than the client this module ends a download that the client failed to end."""
_NAT64 = ip_network("64:ff9b::/96")
_with_name_threads: WeakSet[asyncio.AbstractEventLoop] = WeakSet()


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

    loop = asyncio.get_running_loop()
    if loop not in _with_name_threads:  # asyncio's few threads would all wait for names that no server knows
        _with_name_threads.add(loop)
        loop.set_default_executor(ThreadPoolExecutor(NAME_THREADS, "names"))
    bounds = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS, sock_read=READ_SECONDS)
    redirects = aiohttp.TraceConfig()
    redirects.on_request_redirect.append(_note_redirect)
    connector = aiohttp.TCPConnector(limit=0, **connecting)  # callers limit their requests themselves
    return aiohttp.ClientSession(**{"timeout": bounds, **options, "connector": connector, "trace_configs": [redirects]})


async def _note_redirect(session: object, context: Any, event: Any) -> None:
    if isinstance(context.trace_request_ctx, Download):
        context.trace_request_ctx.redirects += 1


@dataclass(slots=True, kw_only=True)
class Download:
    """A GET of one object with limits: of its bytes, of the silence of the server, and of the whole time."""

    url: str
    most_bytes: int
    silence_seconds: float
    total_seconds: float
    only_head: bool = False
    """Hang up after the head of a good answer, which proves that the server is there."""
    redirects: int = 0
    """Redirects followed; after the first one another host may be the one that fails."""
    answered: bool = False
    """Whether a server sent the head of an answer."""
    received: int = 0
    """Bytes of the body so far."""

    def read(self, fs: Any) -> bytes:
        """Return the body, but not more than one byte above the limit: the rest is left unread. `fs` is fsspec's HTTP filesystem.

        Raises the client's own errors, and TimeoutError where the whole time is over.
        """
        data: bytes = sync(fs.loop, self._read, fs, timeout=self.total_seconds + GRACE_SECONDS)
        return data

    async def _read(self, fs: Any) -> bytes:
        import aiohttp

        session = await fs.set_session()
        connect = min(CONNECT_SECONDS, self.silence_seconds)
        bounds = aiohttp.ClientTimeout(total=self.total_seconds, sock_connect=connect, sock_read=self.silence_seconds)
        headers = {"Accept-Encoding": "identity", **fs.kwargs.get("headers", {})}
        options = {**fs.kwargs, "headers": headers, "timeout": bounds, "trace_request_ctx": self}
        async with session.get(fs.encode_url(self.url), **options) as response:
            self.answered = True
            response.raise_for_status()
            if self.only_head:
                return b""
            body = bytearray()
            if (response.content_length or 0) > self.most_bytes:
                raise BodyTooLargeError(int(response.content_length))
            async for chunk in response.content.iter_any():
                self.received += len(chunk)
                body += chunk
                if len(body) > self.most_bytes:  # leaving the block hangs up
                    return bytes(body[: self.most_bytes + 1])
            return bytes(body)


class BodyTooLargeError(Exception):
    """A server announces more bytes than are allowed. Attribute: `size`."""

    def __init__(self, size: int) -> None:
        super().__init__(f"the body has {size} bytes")
        self.size = size
