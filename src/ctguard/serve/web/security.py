"""What every request and every answer goes through: headers, size of requests, and who may name a user."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from ipaddress import IPv4Network, IPv6Network, ip_address

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ctguard.serve.config import Web
from ctguard.serve.logs import say

MAX_BODY_BYTES = 65_536
"""Nothing is uploaded: the longest form is a note."""
CSP = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",  # no inline script, no eval; NiiVue starts no worker and, for NIfTI, no WebAssembly
        "style-src 'self'",  # scripts set positions through the CSSOM, which this allows
        "img-src 'self' data:",  # NiiVue's letters are an image in a data: address inside its own file
        "connect-src 'self'",  # volumes and the state of a case
        "form-action 'self'",
        "base-uri 'none'",
        "frame-ancestors 'none'",
    )
)
_HEADERS = {
    "Content-Security-Policy": CSP,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=(), usb=()",
}
Networks = Sequence[IPv4Network | IPv6Network]


def comes_from(peer: str, networks: Networks) -> bool:
    """Whether an address (as the connection has it, never as a header says) is in one of the networks."""
    try:
        address = ip_address(peer)
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return any((mapped or address) in network for network in networks)


class Guard:
    """ASGI middleware around everything, error pages too."""

    def __init__(self, app: ASGIApp, web: Web) -> None:
        self.app, self.web = app, web

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse large bodies, drop a user's name that no listed proxy gave, and set the headers of the answer."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def sent(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._protect(MutableHeaders(scope=message))
            await send(message)

        self._strip_proxy_user(scope)
        length = Headers(scope=scope).get("content-length", "0")
        if not length.isdigit() or int(length) > MAX_BODY_BYTES:
            say("request-too-large", logging.WARNING, bytes=length[:12], address=peer_of(scope))
            await PlainTextResponse("This request is too large.\n", 413)(scope, receive, sent)
        else:
            await self.app(scope, _limited(receive), sent)

    def _protect(self, headers: MutableHeaders) -> None:
        for name, value in _HEADERS.items():
            headers[name] = value
        headers.setdefault("Cache-Control", "no-store")  # pages tell of patients: no copy on disk
        if self.web.secure_cookies:
            headers["Strict-Transport-Security"] = "max-age=31536000"

    def _strip_proxy_user(self, scope: Scope) -> None:
        name = self.web.proxy_user_header.lower().encode("latin-1")
        if name and not comes_from(peer_of(scope), self.web.proxy_addresses):
            kept = [pair for pair in scope["headers"] if pair[0].lower() != name]
            if len(kept) < len(scope["headers"]):
                say("proxy-header-ignored", logging.WARNING, why="not of a listed proxy", address=peer_of(scope))
            scope["headers"] = kept


def peer_of(scope: Scope) -> str:
    """The address at the other end of the connection."""
    client = scope.get("client")
    return str(client[0]) if client else ""


def _limited(receive: Receive) -> Receive:
    """The same for bodies that do not tell their length."""
    seen = 0

    async def counted() -> Message:
        nonlocal seen
        message = await receive()
        seen += len(message.get("body", b""))
        if seen > MAX_BODY_BYTES:
            raise HTTPException(413)
        return message

    return counted
