"""What botocore raises, in Darkroom's words: missing, replaced, denied (a person must act), unavailable (try again).

Texts name the bucket, the endpoint and what to do; they are made here, not copied from botocore, so that nothing
of a request (which carries the access key and a signature) can get into them.
"""

from botocore import exceptions as botocore_errors
from botocore.exceptions import BotoCoreError, ClientError

from pipeline.errors import (
    ObjectMissingError,
    ObjectReplacedError,
    StoreDeniedError,
    StoreError,
    StoreUnavailableError,
)

_ABSENT = ("NoSuchKey", "404", "NotFound")
# The upload was ended by its own first completion whose answer was lost, or by a cleaning rule: put it once more.
_LOST_UPLOAD = "NoSuchUpload"
_REPLACED_STATUS = 412
_NOT_IMPLEMENTED = 501
_THROTTLED_STATUS = (408, 425, 429)
_RETRYABLE_CODES = ("RequestTimeout", "SlowDown", "Throttling", "ThrottlingException", "OperationAborted")

_KEY_ADVICE = "Check AWS_ACCESS_KEY_ID or the AWS profile, and that this is the endpoint they are for"
_TOKEN_ADVICE = "Get new credentials and run again: committed work stands"
_REGION_ADVICE = "Set the region the bucket is in"
_ACCESS_ADVICE = "Check that these credentials are right and may list, read, write and delete there"
_DENIED_ADVICE = {
    "NoSuchBucket": "There is no such bucket there. Create it, or correct the location",
    "InvalidBucketName": "That is no bucket name. Correct the location",
    "AccessDenied": _ACCESS_ADVICE,
    # A HEAD is answered without a text: these are all it says.
    "403": _ACCESS_ADVICE,
    "400": f"Often an expired session token or another region. {_ACCESS_ADVICE}",
    "AllAccessDisabled": "The account has been blocked by its provider",
    "InvalidAccessKeyId": _KEY_ADVICE,
    "SignatureDoesNotMatch": "Check AWS_SECRET_ACCESS_KEY or the AWS profile: the secret is not the one of that key",
    "ExpiredToken": _TOKEN_ADVICE,
    "InvalidToken": _TOKEN_ADVICE,
    "TokenRefreshRequired": _TOKEN_ADVICE,
    "RequestTimeTooSkewed": "The clock of this machine is wrong. Set it",
    "AuthorizationHeaderMalformed": _REGION_ADVICE,
    "PermanentRedirect": _REGION_ADVICE,
    "IllegalLocationConstraintException": _REGION_ADVICE,
}
_NO_CREDENTIALS = (
    botocore_errors.NoCredentialsError,
    botocore_errors.PartialCredentialsError,
    botocore_errors.CredentialRetrievalError,
    botocore_errors.TokenRetrievalError,
    botocore_errors.SSOError,
    botocore_errors.LoginError,
    botocore_errors.ProfileNotFound,
)
_CREDENTIALS_ADVICE = "Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, or give this machine a role"
_TRANSIENT = (botocore_errors.HTTPClientError, botocore_errors.ConnectionError, botocore_errors.IncompleteReadError)


def translate(error: ClientError | BotoCoreError, what: str, place: str) -> StoreError:
    """Return the error to raise. `what` is the operation and key, `place` the bucket and endpoint, both for people."""
    if isinstance(error, ClientError):
        return _from_answer(error, what, place)
    return _from_client(error, what, place)


def _from_answer(error: ClientError, what: str, place: str) -> StoreError:
    """The server answered, with an error."""
    code = str(error.response.get("Error", {}).get("Code", "unknown"))
    status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
    if code in _ABSENT:
        return ObjectMissingError(f"no object: {what} in {place}")
    if status == _REPLACED_STATUS:
        return ObjectReplacedError(f"{what} in {place}: it was written anew while it was read. Run again")
    if code in _DENIED_ADVICE:
        return StoreDeniedError(f"{what} was refused by {place} ({code}). {_DENIED_ADVICE[code]}")
    if (
        (status >= 500 and status != _NOT_IMPLEMENTED)
        or status in _THROTTLED_STATUS
        or code in (*_RETRYABLE_CODES, _LOST_UPLOAD)
    ):
        return StoreUnavailableError(f"{what} kept failing at {place} ({code}, HTTP {status}). Run again later")
    return StoreDeniedError(f"{what} was refused by {place} ({code}, HTTP {status})")


def _from_client(error: BotoCoreError, what: str, place: str) -> StoreError:
    """The client gave up, with or without having reached the server."""
    name = type(error).__name__
    if isinstance(error, _NO_CREDENTIALS):
        return StoreDeniedError(f"no usable credentials for {place} ({name}). {_CREDENTIALS_ADVICE}")
    if "CERTIFICATE_VERIFY_FAILED" in str(error):
        return StoreDeniedError(f"{place} shows a certificate that is not trusted here. Set AWS_CA_BUNDLE to its CA")
    if isinstance(error, _TRANSIENT):
        return StoreUnavailableError(f"{what} kept failing: {place} cannot be reached or breaks off ({name})")
    return StoreDeniedError(f"{what} could not be sent to {place} ({name})")
