"""An association with an archive, over TLS where its destination says so; or why there is none."""

from __future__ import annotations

import socket
import ssl
from typing import Any
from urllib.parse import urlsplit

from pynetdicom import AE
from pynetdicom import _config as pynetdicom_config

from ctguard.core.errors import ReadError
from ctguard.serve.config import Destination

TIMEOUT_S = 60.0
TLS = "TLS: "
"""How reasons begin that are no fault of the network: certificates that do not fit, or somebody in between."""
_HTTPS = 443
_SHAKE_S = 10.0
_AFTER_S = 2.0


def make_ae(title: str) -> AE:
    """An application entity with our time-outs, and silent: what the library would say names titles and UIDs."""
    pynetdicom_config.LOG_HANDLER_LEVEL = "none"
    ae = AE(title)
    ae.acse_timeout = ae.dimse_timeout = ae.network_timeout = ae.connection_timeout = TIMEOUT_S
    return ae


def associate(ae: AE, to: Destination) -> Any:
    """An association with the contexts that `ae` requests. Raises ReadError; its `what` says why there is none."""
    tls = None
    if to.tls_ca is not None:
        try:
            tls = (client_tls(to), to.host)
        except OSError as error:
            raise ReadError(f"{TLS}our certificates cannot be read ({error.strerror})", remedy="check them") from error
    named: dict[str, Any] = {"ae_title": to.ae_title, "tls_args": tls}
    association = ae.associate(to.host, to.port, **named)
    if association.is_established:
        return association
    answer: Any = association.acceptor.primitive
    if association.is_rejected:
        reason = f"the archive rejected the association ({answer.reason_str})"
    elif answer is not None:
        reason = "the archive supports none of what was proposed"
    else:
        reason = (tls_fault(to) if tls else None) or "the archive cannot be reached"
    raise ReadError(reason, where=f"{to.host}:{to.port}", remedy="check titles, address and certificates on both sides")


def client_tls(to: Destination) -> ssl.SSLContext:
    """TLS towards an archive: its certificate must be of the CA and name the host; ours is shown where there is one.

    Raises OSError where a file cannot be read, or is no certificate.
    """
    context = ssl.create_default_context(cafile=to.tls_ca)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if to.tls_certificate is not None:
        context.load_cert_chain(to.tls_certificate, to.tls_key)
    return context


def tls_fault(to: Destination) -> str | None:
    """Why no TLS connection comes about, found out by one more; None where that is not the reason."""
    parts = urlsplit(to.url)
    host, port = (parts.hostname or "", parts.port or _HTTPS) if to.url else (to.host, to.port)
    try:
        context = client_tls(to)
        with (
            socket.create_connection((host, port), timeout=_SHAKE_S) as plain,
            context.wrap_socket(plain, server_hostname=host) as stream,
        ):
            stream.settimeout(_AFTER_S)
            stream.recv(1)  # in TLS 1.3 a peer says after the handshake whether it takes our certificate
    except ssl.SSLCertVerificationError as error:
        return f"{TLS}the archive's certificate is refused ({error.verify_message})"
    except ssl.SSLError as error:
        return f"{TLS}no connection comes about ({error.reason})"
    except OSError:
        return None
    return None
