"""Whether somebody answers at RAY_ADDRESS. Ray itself tries for minutes, and says nothing."""

import os
import socket
import ssl
from contextlib import ExitStack
from pathlib import Path

from ns_ray.errors import ConfigError, StageError, first_line

ANSWER_SECONDS = 5.0
"""What is waited for a connection, and then for the first bytes. Heads answer in milliseconds."""

GREETING = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
"""How clients of HTTP/2 begin, and so of gRPC, which Ray speaks: RFC 9113, section 3.4."""

SETTINGS = 4
"""Type of the frame that servers begin with; it is the fourth byte."""

OF_HEADS = ("/ray.rpc.NodeInfoGcsService/CheckAlive", "/ray.rpc.InternalKVGcsService/InternalKVGet")
"""Calls that only the head of a Ray cluster knows (its GCS; Ray 2.60). One of them will do: names
of Ray's own may change."""

DIRECT = [("grpc.enable_http_proxy", 0)]
"""As Ray's own channels: not through a proxy of the environment."""

INSTEAD = "set it to HOST:PORT of `ray start --head` (6379), or unset it to work on this machine"


TLS = ("RAY_TLS_SERVER_CERT", "RAY_TLS_SERVER_KEY", "RAY_TLS_CA_CERT")
"""Ray's settings of its TLS: a certificate, its key, and the CA of all of them, as PEM files."""


def check_address(address: str) -> None:
    """Ask at a RAY_ADDRESS, for ten seconds at most.

    Raises:
        ConfigError: it is none that a run can join.
        StageError: nobody answers there, or not as a Ray cluster does.
    """
    said = f"RAY_ADDRESS={address}"
    if address.startswith(("http://", "https://")):
        raise ConfigError(
            f"{said} is for `ray job submit` and the dashboard, and no run can join it; "
            f"{INSTEAD}, or submit the run: ray job submit -- python -m ns_ray.run ..."
        )
    if address in ("auto", "local"):  # Ray's own words: it looks on this machine
        return
    place = address.removeprefix("ray://")
    host, _, port = place.rpartition(":")
    if not host or not port.isdecimal():
        raise ConfigError(f"{said} is not HOST:PORT; {INSTEAD}")
    try:
        ours = greeted(place)
    except ssl.SSLError as error:
        raise StageError(
            f"{said}: who answers there has other certificates, or none ({first_line(error)}); see "
            f"that {', '.join(TLS)} name files that its CA has signed, or unset RAY_USE_TLS"
        ) from error
    except (OSError, OverflowError) as error:
        raise StageError(
            f"{said}: nobody answers there ({first_line(error)}); see that the cluster runs and "
            f"can be reached from here; {INSTEAD}"
        ) from error
    if not ours:
        raise StageError(
            f"{said}: what answers there is no Ray cluster, or wants TLS (RAY_USE_TLS); {INSTEAD}"
        )
    if place == address and not _is_head(place):
        raise StageError(
            f"{said}: what answers there is no head of a Ray cluster, perhaps its port for Ray "
            f"Client (10001) or another service; {INSTEAD}"
        )


def greeted(place: str) -> bool:
    """Whether one who speaks gRPC answers at HOST:PORT, over TLS where Ray uses it.

    Raises:
        ConfigError: RAY_USE_TLS without the files that it needs.
        OSError: nobody answers; an SSLError where we and who answers don't trust each other.
    """
    host, _, port = place.rpartition(":")
    host, tls = host.strip("[]"), _tls()
    if tls is not None:
        from ray._private.services import resolve_ip_for_localhost

        # Ray does that, too, and tries for minutes where the certificate lacks the address.
        host = resolve_ip_for_localhost(host)
    with ExitStack() as closing:
        connection = closing.enter_context(
            socket.create_connection((host, int(port)), ANSWER_SECONDS)
        )
        if tls is not None:
            connection = closing.enter_context(tls.wrap_socket(connection, server_hostname=host))
        connection.sendall(GREETING)
        answer = b""
        while len(answer) < 4 and (more := connection.recv(4 - len(answer))):
            answer += more
    return len(answer) == 4 and answer[3] == SETTINGS


def _is_head(place: str) -> bool:
    """Whether one who speaks gRPC at HOST:PORT knows a call of Ray's GCS. Ray itself asks another
    one for ever."""
    import grpc

    tls = _tls()
    if tls is None:
        channel = grpc.insecure_channel(place, options=DIRECT)
    else:
        certificate, key, authority = (Path(os.environ[name]).read_bytes() for name in TLS)
        channel = grpc.secure_channel(
            place, grpc.ssl_channel_credentials(authority, key, certificate), options=DIRECT
        )
    with channel:
        for call in OF_HEADS:
            try:
                channel.unary_unary(call)(b"", timeout=ANSWER_SECONDS)
            except grpc.RpcError as error:  # it may want a token, or not like the question
                if error.code() == grpc.StatusCode.UNIMPLEMENTED:
                    continue
            return True
    return False


def _tls() -> ssl.SSLContext | None:
    """How Ray talks over TLS: both sides show a certificate. None where it doesn't."""
    if os.environ.get("RAY_USE_TLS", "0").lower() not in ("1", "true"):
        return None
    named = [os.environ.get(name, "") for name in TLS]
    if not all(os.path.isfile(path) for path in named):
        raise ConfigError(f"RAY_USE_TLS=1 needs {', '.join(TLS)}, each a file, not {named}")
    certificate, key, authority = named
    try:
        context = ssl.create_default_context(cafile=authority)
        context.load_cert_chain(certificate, key)
    except ssl.SSLError as error:
        raise ConfigError(
            f"{', '.join(TLS)}: these are no certificate, its key and a CA ({first_line(error)})"
        ) from error
    context.set_alpn_protocols(["h2"])
    return context
