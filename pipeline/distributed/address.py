"""The address of a cluster's job API, that of Ray's dashboard: what can be wrong with it, and how to say it."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus
from urllib.parse import SplitResult, urlsplit

from pipeline.errors import JobFileError

DASHBOARD_PORT = 8265
CONNECT_S, ANSWER_S = 5.0, 15.0
START_PATIENCE_S = 60.0
"""Seconds within which the dashboard of a head that is starting must answer."""
_POLL_S = 1.0
_WHERE = "--address"
_NOTHING = "nothing listens there"
_STARTING = (HTTPStatus.BAD_GATEWAY, HTTPStatus.SERVICE_UNAVAILABLE, HTTPStatus.GATEWAY_TIMEOUT)
"""What a proxy before a dashboard answers while the head is starting."""
_OTHER_PORTS = {6379: "the port at which Ray's nodes meet", 10001: "the port of the Ray client"}
"""Ray's defaults, which people take for the dashboard's."""
_TOKEN_WORDS = "authentication token"
"""Part of what a dashboard says to who comes without its token or with another."""


def checked_address(text: str) -> str:
    """The address in the form Ray's client takes; ``JobFileError`` if it cannot be that of a dashboard."""
    if "@" in text:  # the value is left out: what stands before it is likely a password
        raise JobFileError(
            "credentials have no place in an address", where=_WHERE, allowed="RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH"
        )
    parts = _split(text)
    if parts.scheme == "ray":
        raise _bad("this is the address of a Ray client; jobs go to the dashboard", text, _likely(parts))
    if parts.scheme not in ("http", "https"):
        raise _bad(f"jobs are submitted over http or https, not {parts.scheme}", text, _likely(parts))
    if not parts.hostname or parts.query or parts.fragment:
        raise _bad("this is no address of a dashboard", text, f"http://host:{DASHBOARD_PORT}")
    return text.rstrip("/")


def check_dashboard(address: str) -> None:
    """Ask for Ray's version; ``JobFileError`` tells what answers there instead, if anything does.

    A dashboard that asks for a token is one: whether ours is the right one, Ray's own client finds out.
    """
    if (fault := _fault(address)) is not None:
        raise fault.error


def await_dashboard(address: str, tell: Callable[[str], None]) -> None:
    """Check a dashboard as ``check_dashboard`` does, for up to ``START_PATIENCE_S`` while its head may be starting."""
    until, said = time.monotonic() + START_PATIENCE_S, False
    while (fault := _fault(address)) is not None:
        if not fault.may_be_starting or time.monotonic() >= until:
            raise fault.error
        if not said:
            tell(
                f"no dashboard answers at {address} yet; "
                f"trying again for up to {START_PATIENCE_S:.0f} s, since the cluster may be starting"
            )
        said = True
        time.sleep(_POLL_S)


@dataclass(frozen=True, slots=True)
class _Fault:
    """What is wrong with a dashboard's address."""

    error: JobFileError
    may_be_starting: bool


def _fault(address: str) -> _Fault | None:
    import requests

    try:
        answer = requests.get(f"{address}/api/version", timeout=(CONNECT_S, ANSWER_S), allow_redirects=False)
    except requests.exceptions.RequestException as error:
        reason, hint = _reason(error), _hint(address)
        said = f"no job can be submitted there: {reason}{hint}"
        return _Fault(_bad(said, address), may_be_starting=reason == _NOTHING and not hint)
    if answer.status_code in (401, 403) and _TOKEN_WORDS in answer.text:
        return None
    if answer.status_code == 200 and "ray_version" in answer.text[:10_000]:
        return None
    said = f"what answers there is not Ray's dashboard (HTTP {answer.status_code}){_hint(address)}"
    return _Fault(_bad(said, address), may_be_starting=answer.status_code in _STARTING)


def refused_token(address: str, said: str) -> JobFileError:
    """For what Ray's client says of its token, or of having none."""
    asked = "Authentication required" in said
    what = "the cluster asks for a token, and none was given" if asked else "the cluster refuses the token"
    if "Authentication" not in said:  # the client could not find or read one
        what = said.partition(". Ensure")[0]
    return _bad(what, address, "RAY_AUTH_MODE=token, and the cluster's token in RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH")


def _split(text: str) -> SplitResult:
    if "://" not in text:
        host = text if ":" in text else f"{text}:{DASHBOARD_PORT}"
        local = text in ("auto", "local", "")
        raise _bad("this address has no scheme", text, f"http://{f'127.0.0.1:{DASHBOARD_PORT}' if local else host}")
    try:
        parts = urlsplit(text)
        _ = parts.port  # read for its check: it raises if the port is no number
    except ValueError:
        raise _bad("this is no address", text, f"http://host:{DASHBOARD_PORT}") from None
    return parts


def _likely(parts: SplitResult) -> str:
    return f"http://{parts.hostname or 'host'}:{DASHBOARD_PORT}"


def _hint(address: str) -> str:
    port = urlsplit(address).port
    if port in _OTHER_PORTS:
        return f"; {port} is {_OTHER_PORTS[port]}, the dashboard's is {DASHBOARD_PORT}"
    return "" if port else f"; the address names no port, the dashboard's is {DASHBOARD_PORT}"


def _reason(error: Exception) -> str:
    import requests
    import urllib3

    inner = error.args[0] if error.args else error
    cause = getattr(inner, "reason", inner)
    if isinstance(error, requests.exceptions.SSLError):
        return "TLS failed: it may speak plain http, or its certificate is not trusted here"
    if isinstance(error, requests.exceptions.ProxyError):
        return "the proxy of this environment does not let it through"
    if isinstance(error, requests.exceptions.Timeout):
        return "it does not answer, as behind a firewall or in another network"
    if isinstance(cause, urllib3.exceptions.NameResolutionError):
        return "there is no host of this name"
    if isinstance(cause, urllib3.exceptions.NewConnectionError):
        return _NOTHING
    return "what listens there does not speak http"


def _bad(what: str, address: str | None, allowed: str | None = None) -> JobFileError:
    allowed = allowed or f"the address of Ray's dashboard, such as http://host:{DASHBOARD_PORT}"
    return JobFileError(what, where=_WHERE, value=address, allowed=allowed)
