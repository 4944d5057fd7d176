"""Objects in an S3 bucket: AWS, or any server that speaks its protocol.

boto3 is read here from the AWS environment and configuration files in the usual way; nothing else in the room is.
"""

import io
import os
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime
from functools import partial
from itertools import count
from typing import Any, BinaryIO, TypeVar, cast

import boto3
from boto3.s3.transfer import TransferConfig
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError, ResponseStreamingError
from urllib3.exceptions import HTTPError

from pipeline.errors import ObjectMissingError, StoreDeniedError, StoreUnavailableError
from pipeline.storage.base import ObjectInfo, check_key, is_key, prove_writable
from pipeline.storage.ranged import RangeReader
from pipeline.storage.s3_errors import translate
from pipeline.storage.s3_settings import S3Settings, holds_credentials, public_endpoint
from pipeline.storage.traffic import Meter, Traffic

_T = TypeVar("_T")
_POOL_CONNECTIONS = 32
_PART_BYTES = 8 * 2**20
_LONGEST_PAUSE_S = 15.0
_TRANSFER = TransferConfig(
    multipart_threshold=_PART_BYTES,
    multipart_chunksize=_PART_BYTES,
    max_concurrency=8,
    preferred_transfer_client="classic",
)


class S3Store:
    """An `ObjectStore` in `bucket`, its keys below `prefix` (`a/b` without slashes around it, or empty).

    Picklable and thread-safe: each process connects when it first needs to. An object of more than 8 MiB is put in
    parts, which are given up again if one fails. Every body sent is signed, so the server refuses a damaged one.
    """

    def __init__(self, bucket: str, prefix: str, settings: S3Settings) -> None:
        self._bucket = bucket
        self._prefix = f"{check_key(prefix)}/" if prefix else ""
        self._settings = settings
        self._meter = Meter()
        self._lock = threading.Lock()
        self._client_of: tuple[int, Any] | None = None

    def __repr__(self) -> str:
        return f"S3Store({self.uri!r})"

    def __reduce__(self) -> tuple[type["S3Store"], tuple[str, str, S3Settings]]:
        return S3Store, (self._bucket, self._prefix.removesuffix("/"), self._settings)

    @property
    def uri(self) -> str:
        """`s3://bucket/prefix`."""
        return f"s3://{self._bucket}/{self._prefix}".removesuffix("/")

    @property
    def traffic(self) -> Traffic:
        """Every attempt to send a request counts, also those that botocore makes on its own."""
        return self._meter.total

    def put(self, key: str, body: bytes) -> None:
        """Write or replace the object; all of it becomes visible at once."""
        self.put_file(key, io.BytesIO(body))

    def put_file(self, key: str, file: BinaryIO) -> None:
        """Write or replace the object with the file's content; memory holds a few parts of 8 MiB of it."""
        target = {"Bucket": self._bucket, "Key": self._full(key)}
        size_bytes = file.seek(0, os.SEEK_END)

        def send(client: Any) -> None:
            file.seek(0)
            if size_bytes > _PART_BYTES:
                client.upload_fileobj(file, **target, Config=_TRANSFER)
            else:
                client.put_object(**target, Body=file.read())

        with self._meter.putting():
            self._insist(send, f"writing {key!r}")
        self._meter.add(Traffic(bytes_put=size_bytes))

    def get(self, key: str) -> bytes:
        """Return the whole object, its length verified. Raises ObjectMissingError."""
        target = {"Bucket": self._bucket, "Key": self._full(key)}
        return self._got(self._insist(lambda client: _read_all(client.get_object(**target)), f"reading {key!r}"))

    def get_range(self, key: str, start: int, length: int) -> bytes:
        """Return `length` bytes from byte `start` on, fewer where the object ends. Raises ObjectMissingError."""
        assert min(start, length) >= 0, (start, length)
        if length == 0:  # HTTP has no way to ask for nothing
            self._require(key)
            return b""
        return self._ranged({"Bucket": self._bucket, "Key": self._full(key)}, key, start, length)

    def head(self, key: str) -> ObjectInfo | None:
        """Return size and time of the object, None if there is none.

        S3 answers this one question the same way where there is no such bucket; all other operations do tell.
        """
        target = {"Bucket": self._bucket, "Key": self._full(key)}
        try:
            answer = self._insist(lambda client: client.head_object(**target), f"looking at {key!r}")
        except ObjectMissingError:
            return None
        return ObjectInfo(key=key, size_bytes=answer["ContentLength"], modified=_utc(answer["LastModified"]))

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """Yield the objects whose key begins with `prefix`, in key order, a page of up to 1,000 per request."""
        arguments = {"Bucket": self._bucket, "Prefix": self._prefix + prefix}
        while True:
            page = self._insist(lambda client: client.list_objects_v2(**arguments), f"listing {prefix!r}")
            yield from self._listed(page)
            if not page["IsTruncated"]:
                return
            arguments["ContinuationToken"] = page["NextContinuationToken"]

    def delete(self, key: str) -> None:
        """Remove the object, if there is one."""
        target = {"Bucket": self._bucket, "Key": self._full(key)}
        try:
            self._insist(lambda client: client.delete_object(**target), f"deleting {key!r}")
        except ObjectMissingError:  # AWS says 204 here, other servers 404
            return

    def sweep(self, prefix: str, before: datetime) -> int:
        """Abort the uploads of objects whose key begins with `prefix` that were begun before a moment."""
        return sum(self._abort(upload) for upload in self._uploads(prefix) if _utc(upload["Initiated"]) < before)

    def open(self, key: str) -> BinaryIO:
        """Open the object for reading; each read is one ranged request. Raises ObjectMissingError.

        Reads raise ObjectReplacedError once it has been replaced, if the server obeys If-Match.
        """
        target = {"Bucket": self._bucket, "Key": self._full(key)}
        found = self._insist(lambda client: client.head_object(**target), f"looking at {key!r}")
        if not found.get("ETag", "W/").startswith("W/"):  # a weak one never matches
            target["IfMatch"] = found["ETag"]
        reader = RangeReader(lambda start, length: self._ranged(target, key, start, length), found["ContentLength"])
        return cast(BinaryIO, reader)  # a raw file does all a BinaryIO for reading does, without being one by name

    def check_writable(self) -> None:
        """Write and delete a small object under `_darkroom/`."""
        prove_writable(self)

    def _uploads(self, prefix: str) -> Iterator[Any]:
        """What the server says of each unfinished upload, a page of up to 1,000 per request.

        A page with nothing new is the last, whatever the server says: not all of them go on where they are told to.
        """
        place, page, seen = {"Bucket": self._bucket, "Prefix": self._prefix + prefix}, dict[str, Any](), set[str]()
        while not page or page.get("IsTruncated"):
            after = {f"{name}Marker": page[f"Next{name}Marker"] for name in ("Key", "UploadId")} if page else {}
            page = self._insist(partial(_list_uploads, place | after), f"listing uploads {prefix!r}")
            new = [upload for upload in page.get("Uploads", ()) if upload["UploadId"] not in seen]
            yield from new
            if not new:
                return
            seen.update(upload["UploadId"] for upload in new)

    def _abort(self, upload: Any) -> bool:
        target = {"Bucket": self._bucket, "Key": upload["Key"], "UploadId": upload["UploadId"]}

        def send(client: Any) -> bool:
            try:
                client.abort_multipart_upload(**target)
            except ClientError as error:
                if error.response.get("Error", {}).get("Code") in ("NoSuchUpload", "NoSuchKey"):
                    return False  # it has ended since
                raise
            return True

        return self._insist(send, f"aborting the upload of {upload['Key']!r}")

    def _full(self, key: str) -> str:
        return self._prefix + check_key(key)

    def _require(self, key: str) -> ObjectInfo:
        info = self.head(key)
        if info is None:
            raise ObjectMissingError(f"no object: reading {key!r} in {self.uri}")
        return info

    def _listed(self, page: Any) -> Iterator[ObjectInfo]:
        for item in page.get("Contents", ()):
            key = item["Key"][len(self._prefix) :]
            if is_key(key):
                yield ObjectInfo(key=key, size_bytes=item["Size"], modified=_utc(item["LastModified"]))

    def _ranged(self, target: dict[str, str], key: str, start: int, length: int) -> bytes:
        return self._got(self._insist(lambda client: _read_range(client, target, start, length), f"reading {key!r}"))

    def _got(self, body: bytes) -> bytes:
        self._meter.add(Traffic(bytes_got=len(body)))
        return body

    def _insist(self, call: Callable[[Any], _T], what: str) -> _T:
        """Call with the client, again after growing pauses while the failure may pass and patience lasts.

        botocore has by then sent each request `max_attempts` times; these rounds are for what it does not retry
        (a body that breaks off, an upload whose last answer was lost) and for outages longer than its few seconds.
        """
        client, place = self._connection()
        deadline: float | None = None
        for round_number in count():
            try:
                return call(client)
            except (ClientError, BotoCoreError) as error:
                failure = translate(error, what, place)
                now, pause_s = time.monotonic(), _pause_s(round_number)
                deadline = now + self._settings.patience_s if deadline is None else deadline
                if not isinstance(failure, StoreUnavailableError) or now + pause_s > deadline:
                    raise failure from error
            self._meter.add(Traffic(retries=1))
            time.sleep(pause_s)
        raise AssertionError("count() does not end")

    def _connection(self) -> tuple[Any, str]:
        """Return this process's client (a forked child must not share its parent's sockets), and words for it."""
        with self._lock:
            if self._client_of is None or self._client_of[0] != os.getpid():
                self._client_of = (os.getpid(), self._connect())
            client = self._client_of[1]
        return client, f"bucket {self._bucket!r} at {client.meta.endpoint_url}"

    def _connect(self) -> Any:
        client = _connect(self._settings)
        client.meta.events.register("before-send.s3", self._count_attempt)
        return client

    def _count_attempt(self, request: Any, **_: Any) -> None:
        """What botocore calls with each request that goes out; its header says which attempt that is."""
        first = "attempt=1;" in f"{request.headers['amz-sdk-request']};"
        self._meter.add(Traffic(requests=1, retries=0 if first else 1))


def _connect(settings: S3Settings) -> Any:
    """Return a boto3 client. A style that is not given is left to botocore, which prefers paths on own endpoints."""
    style = {} if settings.addressing_style == "auto" else {"addressing_style": settings.addressing_style}
    config = Config(
        signature_version="s3v4",
        retries={"mode": "standard", "total_max_attempts": settings.max_attempts},
        connect_timeout=settings.connect_timeout_s,
        read_timeout=settings.read_timeout_s,
        max_pool_connections=_POOL_CONNECTIONS,
        tcp_keepalive=True,
        # Many servers know nothing of the checksums AWS has added; the signature already covers the body.
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
        s3={"payload_signing_enabled": True, **style},
    )
    place = f"S3 at {settings.endpoint_url or 'the endpoint of the AWS environment or configuration'}"
    try:
        # A session of its own: the default one is not thread-safe while clients are made.
        client = boto3.session.Session().client(
            "s3", endpoint_url=settings.endpoint_url, region_name=settings.region, config=config
        )
    except BotoCoreError as error:
        raise translate(error, "connecting", place) from error
    except ValueError:
        raise StoreDeniedError(f"{place} is not an address. Use http://host:port or https://host") from None
    if holds_credentials(client.meta.endpoint_url):
        raise StoreDeniedError(
            f"{public_endpoint(client.meta.endpoint_url)}: take user and password out of the address"
        )
    return client


def _list_uploads(arguments: dict[str, str], client: Any) -> Any:
    return client.list_multipart_uploads(**arguments)


def _read_all(answer: Any) -> bytes:
    """Return the body; botocore's reader compares its length with the announced one."""
    with closing(answer["Body"]) as stream:
        try:
            body: bytes = stream.read()
        except (HTTPError, OSError) as error:  # what botocore lets through, such as a broken TLS record
            raise ResponseStreamingError(error=error) from error
    return body


def _read_range(client: Any, target: dict[str, str], start: int, length: int) -> bytes:
    try:
        answer = client.get_object(**target, Range=f"bytes={start}-{start + length - 1}")
    except ClientError as error:
        if error.response.get("Error", {}).get("Code") in ("InvalidRange", "416"):
            return b""  # the object ends before `start`
        raise
    body = _read_all(answer)
    whole = answer["ResponseMetadata"]["HTTPStatusCode"] != 206  # a server may answer with all there is
    return body[start : start + length] if whole else body


def _pause_s(round_number: int) -> float:
    """Double from 1 s up to 15 s, with jitter so that a thousand workers do not come back at once."""
    return min(_LONGEST_PAUSE_S, 2.0**round_number) * random.uniform(0.5, 1.0)


def _utc(modified: datetime) -> datetime:
    return modified.astimezone(UTC)
