"""Objects in a bucket, through boto3."""

import io
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, BinaryIO, Literal, TypeVar

import boto3
from boto3.s3.transfer import TransferConfig
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError, PartialCredentialsError
from botocore.exceptions import ConnectionError as BotoConnectionError
from urllib3.exceptions import HTTPError as BodyError

from pipeline.errors import ObjectMissingError, StoreDeniedError, StoreError, StoreUnavailableError
from pipeline.storage.base import PROBE_KEY, ObjectInfo, RangeReader, check_key

T = TypeVar("T")

_MULTIPART_BYTES = 8 * 2**20
_READ_AHEAD_BYTES = 2**18
_MISSING = {"NoSuchKey", "404", "NotFound"}
_DENIED = {
    "NoSuchBucket", "AccessDenied", "403", "Forbidden", "InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken",
    "InvalidToken", "AuthorizationHeaderMalformed", "PermanentRedirect", "301", "InvalidBucketName",
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class S3Settings:
    """How to reach the service; credentials, and what is None here, come the usual AWS way."""

    endpoint_url: str | None = None
    region: str | None = None
    addressing_style: Literal["auto", "path", "virtual"] = "auto"
    attempts: int = 8
    """Per request, with exponential backoff."""
    timeout_s: float = 60.0


class S3Store:
    """Keys below a prefix of one bucket. Holds no credentials and no connection when pickled."""

    def __init__(self, bucket: str, prefix: str, settings: S3Settings) -> None:
        self._bucket = bucket
        self._prefix = f"{prefix.strip('/')}/" if prefix.strip("/") else ""
        self._settings = settings
        self._lock = threading.Lock()
        self._client: Any = None

    def __reduce__(self) -> tuple[type["S3Store"], tuple[str, str, S3Settings]]:
        return S3Store, (self._bucket, self._prefix, self._settings)

    @property
    def uri(self) -> str:
        return f"s3://{self._bucket}/{self._prefix}".rstrip("/")

    def put(self, key: str, body: bytes) -> None:
        name = self._name(key)
        if len(body) <= _MULTIPART_BYTES:
            self._ask(key, lambda client: client.put_object(Bucket=self._bucket, Key=name, Body=body))
            return
        # Sends parts, and aborts the upload when one fails.
        transfer = TransferConfig(multipart_threshold=_MULTIPART_BYTES, multipart_chunksize=_MULTIPART_BYTES)
        self._ask(key, lambda client: client.upload_fileobj(io.BytesIO(body), self._bucket, name, Config=transfer))

    def get(self, key: str) -> bytes:
        return self._read(key, None)

    def get_range(self, key: str, start: int, length: int) -> bytes:
        return self._read(key, f"bytes={start}-{start + length - 1}") if length > 0 else b""

    def head(self, key: str) -> ObjectInfo | None:
        name = self._name(key)
        try:
            found = self._ask(key, lambda client: client.head_object(Bucket=self._bucket, Key=name))
        except ObjectMissingError:
            return None
        return ObjectInfo(key=key, size_bytes=found["ContentLength"], modified=found["LastModified"])

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        following: dict[str, str] = {}
        while True:
            page = self._ask(prefix, partial(self._page, prefix=prefix, following=following))
            for entry in page.get("Contents", ()):
                key = entry["Key"].removeprefix(self._prefix)
                yield ObjectInfo(key=key, size_bytes=entry["Size"], modified=entry["LastModified"])
            if not page.get("IsTruncated"):
                return
            following = {"ContinuationToken": page["NextContinuationToken"]}

    def delete(self, key: str) -> None:
        name = self._name(key)
        self._ask(key, lambda client: client.delete_object(Bucket=self._bucket, Key=name))

    def open(self, key: str) -> BinaryIO:
        found = self.head(key)
        if found is None:
            raise ObjectMissingError(f"no such object: {self.uri}/{key}")
        return io.BufferedReader(RangeReader(self, key, found.size_bytes), _READ_AHEAD_BYTES)

    def check_writable(self) -> None:
        self.put(PROBE_KEY, b"")
        self.delete(PROBE_KEY)

    def _page(self, client: Any, prefix: str, following: dict[str, str]) -> Any:
        return client.list_objects_v2(Bucket=self._bucket, Prefix=self._prefix + prefix, **following)

    def _read(self, key: str, span: str | None) -> bytes:
        """botocore does not retry a body that breaks off: read it whole, check its length, else ask again."""
        name, extra = self._name(key), {"Range": span} if span else {}
        reason = ""
        for attempt in range(self._settings.attempts):
            time.sleep(min(8.0, 0.1 * 2**attempt) if attempt else 0)
            try:
                found = self._ask(key, lambda client: client.get_object(Bucket=self._bucket, Key=name, **extra))
                body: bytes = found["Body"].read()
                if len(body) == found["ContentLength"]:
                    return body
                reason = f"{len(body)} of {found['ContentLength']} bytes arrived"
            except _RangeEndError:
                return b""
            except (BotoCoreError, BodyError, OSError) as error:
                reason = type(error).__name__
        raise StoreUnavailableError(f"reading kept failing ({reason}): {self.uri}/{key}")

    def _name(self, key: str) -> str:
        return self._prefix + check_key(key)

    def _ask(self, key: str, request: Callable[[Any], T]) -> T:
        try:
            return request(self._connected())
        except ClientError as error:
            raise self._from_answer(error, key) from None
        except (NoCredentialsError, PartialCredentialsError):
            raise StoreDeniedError(f"no AWS credentials were found for {self.uri}") from None
        except (BotoCoreError, boto3.exceptions.Boto3Error) as error:
            raise self._from_transport(error) from None

    def _from_answer(self, error: ClientError, key: str) -> Exception:
        code = str(error.response.get("Error", {}).get("Code", ""))
        if code in _MISSING:
            return ObjectMissingError(f"no such object: {self.uri}/{key}")
        if code in ("InvalidRange", "416"):
            return _RangeEndError(f"past the end of {self.uri}/{key}")
        if code in _DENIED:
            return StoreDeniedError(f"the store refused ({code}) access to bucket {self._bucket!r}{self._at()}")
        return StoreUnavailableError(f"the store kept answering {code or 'an error'} for {self.uri}/{key}{self._at()}")

    def _from_transport(self, error: Exception) -> StoreError:
        kind = "cannot be reached" if isinstance(error, BotoConnectionError) else f"failed ({type(error).__name__})"
        return StoreUnavailableError(f"the store of {self.uri} {kind}{self._at()}")

    def _at(self) -> str:
        return f" at {self._client.meta.endpoint_url}" if self._client is not None else ""

    def _connected(self) -> Any:
        with self._lock:
            if self._client is None:
                self._client = _connect(self._settings)
            return self._client


class _RangeEndError(StoreError):
    """A range begins at or past the object's end."""


def _connect(settings: S3Settings) -> Any:
    session = boto3.session.Session(region_name=settings.region)

    def client(style: str | None) -> Any:
        config = Config(
            retries={"mode": "standard", "total_max_attempts": settings.attempts},
            connect_timeout=min(10.0, settings.timeout_s),
            read_timeout=settings.timeout_s,
            max_pool_connections=32,
            signature_version="s3v4",
            # Later checksum headers are unknown to many S3 servers; bodies are signed and their lengths are checked.
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
            s3={"addressing_style": style} if style else None,
        )
        region = session.region_name or "us-east-1"
        return session.client("s3", endpoint_url=settings.endpoint_url, region_name=region, config=config)

    if settings.addressing_style != "auto":
        return client(settings.addressing_style)
    plain = client(None)
    own_server = not plain.meta.endpoint_url.split("?")[0].rstrip("/").endswith((".amazonaws.com", ".amazonaws.com.cn"))
    said_otherwise = (session._session.get_scoped_config().get("s3") or {}).get("addressing_style")
    return client("path") if own_server and not said_otherwise else plain
