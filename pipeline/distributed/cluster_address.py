"""The address of a cluster that a launch joins: what can be wrong with it, and how to say it."""

import re
from urllib.parse import urlsplit

from pipeline.distributed.address import DASHBOARD_PORT, refused_token
from pipeline.errors import JobFileError

CLIENT_PORT, NODES_PORT = 10001, 6379
"""Ray's defaults: of Ray Client, and where nodes meet."""
ANSWER_S = 5.0
_ALLOWED = f"host:port of the head, such as 10.0.0.1:{NODES_PORT}; auto, for a Ray that runs on this machine"
_HOST_PORT = re.compile(r"(\[[0-9A-Fa-f:.%\w]+\]|[^\s:/@\[\]]+):(\d{1,5})")


def checked_cluster(text: str | None) -> str | None:
    """Return the address in the form that Ray takes; None where a Ray is to be started here.

    Raises ``JobFileError`` if it cannot be that of a cluster. Nothing is contacted.
    """
    if text is None or text.strip() in ("", "local"):
        return None
    address = text.strip()
    if address == "auto":
        return address
    if "@" in address:  # the value is left out: what stands before it is likely a password
        raise _bad("credentials have no place in an address", None, "RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH")
    if "://" in address:
        raise _scheme(address)
    match = _HOST_PORT.fullmatch(address)
    if match is None:
        raise _bad("this address has no valid port" if ":" in address else "this address has no port", address)
    if not 0 < int(match[2]) < 2**16:
        raise _bad("this address has no valid port", address)
    return address


def check_alive(address: str, *, given: str) -> None:
    """Ask the head whether it is alive; ``JobFileError`` tells what answers there instead, if anything does.

    Ray would ask for minutes.
    """
    import grpc
    from ray._private.authentication.authentication_utils import is_token_auth_enabled
    from ray._private.grpc_utils import init_grpc_channel
    from ray.core.generated.gcs_service_pb2 import CheckAliveRequest
    from ray.core.generated.gcs_service_pb2_grpc import NodeInfoGcsServiceStub
    from ray.exceptions import AuthenticationError

    with init_grpc_channel(address, options=[("grpc.enable_http_proxy", 0)]) as channel:
        try:
            NodeInfoGcsServiceStub(channel).CheckAlive(CheckAliveRequest(), timeout=ANSWER_S)
        except AuthenticationError as error:  # there is no token where one is said to be
            raise refused_token(given, str(error)) from None
        except grpc.RpcError as error:
            details = error.details() or ""
            if error.code() == grpc.StatusCode.UNAUTHENTICATED:
                if given == "auto":  # Ray then looks for a token of this user
                    return
                raise refused_token(given, details if is_token_auth_enabled() else "Authentication required") from None
            reason = _reason(error.code().name, details)
            raise _bad(f"no Ray cluster can be joined there: {reason}{_hint(address)}", given) from None


def no_ray_here() -> JobFileError:
    """Return the error for `auto` on a machine without a Ray."""
    return _bad("no Ray runs on this machine", "auto", f"{_ALLOWED}; nothing, to start one for this job")


def _scheme(address: str) -> JobFileError:
    parts = urlsplit(address)
    host = parts.hostname or "host"
    if parts.scheme in ("http", "https"):
        return _bad(
            "this is the address of Ray's dashboard, which `darkroom submit` takes", address, f"{host}:{NODES_PORT}"
        )
    return _bad(f"no cluster can be joined over {parts.scheme}://", address, f"{host}:{NODES_PORT}")


def _reason(code: str, details: str) -> str:
    if code == "DEADLINE_EXCEEDED":
        return "it does not answer, as behind a firewall or in another network"
    if code == "UNAVAILABLE" and "resolv" in details:
        return "there is no host of this name"
    if code == "UNAVAILABLE" and "refused" in details:
        return "nothing listens there"
    if code == "UNAVAILABLE" and ("unreachable" in details or "No route" in details):
        return "this machine has no route to it"
    return "what listens there is not the head of a Ray cluster"


def _hint(address: str) -> str:
    others = {DASHBOARD_PORT: "the dashboard's port", CLIENT_PORT: "the port of the Ray client"}
    port = int(address.rpartition(":")[2])
    return f"; {port} is {others[port]}, nodes meet at {NODES_PORT}" if port in others else ""


def _bad(what: str, address: str | None, allowed: str = _ALLOWED) -> JobFileError:
    return JobFileError(what, where="--address, RAY_ADDRESS", value=address, allowed=allowed)
