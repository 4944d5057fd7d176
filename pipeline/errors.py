"""Every error Darkroom raises on purpose, named by what the caller does about it.

    DarkroomError
    ├── InputError              what the user gave cannot be used: say so, exit 2, nothing was rendered
    │   ├── JobFileError        a key or value of the job file or the command line
    │   ├── ManifestError       the prompt manifest, or rows in it
    │   ├── ModelError          the model cannot be found, read or is not supported
    │   ├── OutputError         the output location cannot be used
    │   └── RunMismatchError    the output holds a run whose pixels were decided by other settings
    ├── StoreError              the object store did not do what it was asked
    │   ├── ObjectMissingError  no object under that key: the caller decides what that means
    │   ├── ObjectReplacedError it was written anew while it was read: read it once more, from its start
    │   ├── StoreDeniedError    credentials, permission, or no such bucket: a person must act
    │   └── StoreUnavailableError  it kept failing after every retry: run again later
    ├── RenderError             one task cannot be rendered: it becomes a failed row, its neighbours go on
    └── JobBrokenError          the machinery around the work broke: exit 1, committed work stands
        └── DeviceHeldError     other processes fill the device: another process or node takes over

All of them cross process borders, so all of them pickle.
"""

import re
from collections.abc import Callable
from reprlib import Repr
from typing import Any

_REPR = Repr()
_REPR.maxlevel = 4  # a small YAML file with anchors can hold a value of gigabytes
_REPR.maxdict = _REPR.maxlist = _REPR.maxtuple = _REPR.maxset = _REPR.maxfrozenset = 30
_REPR.maxstring = _REPR.maxlong = _REPR.maxother = 100_000  # cut at their end, by `_shorten`


_ADDRESS = re.compile(r"(:/{1,3})([^\s'\"]+)")
"""What follows the scheme; a path that was made of an address has lost a slash."""
_PARAMETER = re.compile(r"([?&][\w.-]*(?:signature|token|secret|password|key|sig)=)[^&\s'\"]+", re.IGNORECASE)
"""Of an address, such as one that was signed beforehand."""


def without_credentials(text: str) -> str:
    """A text for people, without what could be a password in an address."""
    return _PARAMETER.sub(r"\1…", _ADDRESS.sub(_without_user, text))


def _without_user(address: re.Match[str]) -> str:
    user, at, host = address[2].rpartition("@")
    if not at or ("/" in user and ":" not in user):  # an @ in a path; but a password may have slashes in it
        return address[0]
    return f"{address[1]}…@{host}"


class DarkroomError(Exception):
    """Base of all errors raised on purpose."""


class InputError(DarkroomError):
    """One block for people: what is wrong, where, the value found, what is allowed."""

    def __init__(
        self, what: str, *, where: str | None = None, value: object = None, allowed: str | None = None
    ) -> None:
        super().__init__(what)
        self.what = what
        self.where = where
        self.value = None if value is None else _shown(value)
        self.allowed = allowed

    def __str__(self) -> str:
        lines = [self.what]
        lines += [f"  where:   {self.where}"] if self.where else []
        lines += [f"  value:   {self.value}"] if self.value is not None else []
        lines += [f"  allowed: {self.allowed}"] if self.allowed else []
        return without_credentials("\n".join(lines))

    def __reduce__(self) -> tuple[Callable[..., "InputError"], tuple[type["InputError"], dict[str, Any]]]:
        return _rebuild, (type(self), dict(self.__dict__))


def _shown(value: object) -> str:
    try:
        return _shorten(without_credentials(_REPR.repr(value)))
    except ValueError:  # Python refuses to write out whole numbers of more than 4,300 digits
        return "a number of thousands of digits"


def _shorten(text: str, limit: int = 120) -> str:
    return text if len(text) <= limit else f"{text[:limit]}… ({len(text)} characters)"


def _rebuild(kind: type[InputError], fields: dict[str, Any]) -> InputError:
    error = kind(fields["what"])
    error.__dict__.update(fields)
    return error


class JobFileError(InputError):
    """A key or value of the job file or the command line."""


class ManifestError(InputError):
    """The prompt manifest, or rows in it."""


class ModelError(InputError):
    """The model cannot be found, read or is not supported."""


class OutputError(InputError):
    """The output location cannot be used."""


class RunMismatchError(InputError):
    """The output holds a run whose pixels were decided by other settings."""


class StoreError(DarkroomError):
    """The object store did not do what it was asked. The message never holds credentials."""


class ObjectMissingError(StoreError):
    """No object under that key."""


class ObjectReplacedError(StoreError):
    """Another object lies under that key than when it was opened."""


class StoreDeniedError(StoreError):
    """Credentials, permission, or no such bucket: a person must act."""


class StoreUnavailableError(StoreError):
    """It kept failing after every retry."""


class RenderError(DarkroomError):
    """One task cannot be rendered."""


class JobBrokenError(DarkroomError):
    """The machinery around the work broke."""


class DeviceHeldError(JobBrokenError):
    """Other processes fill the device."""
