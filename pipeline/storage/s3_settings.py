"""How to reach an S3 server. Holds no credentials: those are found the usual AWS way."""

from dataclasses import dataclass, replace
from typing import Literal, get_args
from urllib.parse import SplitResult, urlsplit

from pipeline.errors import InputError

AddressingStyle = Literal["auto", "path", "virtual"]


@dataclass(frozen=True, slots=True, kw_only=True)
class S3Settings:
    """Where and how patiently to talk to S3; None means what the AWS environment and configuration files say.

    `addressing_style` auto is path style for an endpoint of your own and virtual-host style for AWS, unless the AWS
    configuration file says otherwise. A request that fails for a passing reason is sent up to `max_attempts` times
    in a row; rounds of that are repeated, with growing pauses, until `patience_s` seconds after the first failure.

    Raises:
        InputError: the endpoint is not an http(s) address or contains credentials, or a number is out of range.
    """

    endpoint_url: str | None = None
    region: str | None = None
    addressing_style: AddressingStyle = "auto"
    max_attempts: int = 8
    patience_s: float = 60.0
    connect_timeout_s: float = 10.0
    read_timeout_s: float = 60.0

    def impatient(self) -> "S3Settings":
        """The same server, for the first contact: one that cannot be reached is told about in seconds."""
        return replace(self, max_attempts=3, patience_s=0, connect_timeout_s=min(5.0, self.connect_timeout_s))

    def __post_init__(self) -> None:
        if self.endpoint_url is not None:
            _check_endpoint(self.endpoint_url)
        if self.addressing_style not in get_args(AddressingStyle):
            raise _refusal("addressing_style", self.addressing_style, "auto, path, virtual")
        if self.max_attempts < 1:
            raise _refusal("max_attempts", self.max_attempts, "1 or more")
        if self.patience_s < 0:
            raise _refusal("patience_s", self.patience_s, "0 or more seconds")
        for name in ("connect_timeout_s", "read_timeout_s"):
            if not getattr(self, name) > 0:
                raise _refusal(name, getattr(self, name), "more than 0 seconds")


def public_endpoint(url: str) -> str:
    """Return the address without anything that could be a credential: `https://host:port/path`."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def holds_credentials(url: str) -> bool:
    """Tell whether the address has the form `https://user:password@host`."""
    return "@" in urlsplit(url).netloc


def _check_endpoint(url: str) -> None:
    allowed = "http://host:port or https://host"
    parts = _split(url)
    if parts is None or parts.scheme not in ("http", "https") or not parts.hostname:
        # The value is left out where it may hold a password.
        raise _refusal("endpoint_url", None if "@" in url else url, allowed)
    if holds_credentials(url):
        raise _refusal("endpoint_url", None, f"{allowed}, without user and password: use the AWS_* variables")
    if parts.query or parts.fragment:
        raise _refusal("endpoint_url", public_endpoint(url), f"{allowed}, with nothing after ? or #")


def _split(url: str) -> SplitResult | None:
    try:
        parts = urlsplit(url)
        _ = parts.port  # read for its check: it raises if the port is no number
    except ValueError:
        return None
    return parts


def _refusal(field: str, value: object, allowed: str) -> InputError:
    return InputError(f"bad S3 setting {field}", where=f"s3.{field}", value=value, allowed=allowed)
