"""The error tree: it crosses process borders, and it is drawn as it is."""

import inspect
import pickle
import re

import pytest

from pipeline import errors

KINDS = [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, errors.DarkroomError)]


@pytest.mark.parametrize("kind", KINDS)
def test_errors_pickle(kind: type[errors.DarkroomError]) -> None:
    error = kind("what")
    if isinstance(error, errors.InputError):
        error = kind("what", where="here", value=["v"], allowed="less")  # type: ignore[call-arg]  # InputError's
    copy = pickle.loads(pickle.dumps(error))  # noqa: S301  # our own bytes
    assert type(copy) is kind
    assert str(copy) == str(error)


@pytest.mark.parametrize("value", [10**5000, "x" * 10**6, [[[[[[[0]]]]]]], list(range(10**6))], ids=type)
def test_a_value_of_any_size_is_shown_short(value: object) -> None:
    shown = errors.InputError("what", value=value).value
    assert shown is not None
    assert len(shown) < 200


def test_a_value_that_grows_when_written_out() -> None:
    value: list[object] = []
    for _ in range(60):
        value = [value, value]
    assert len(str(errors.InputError("what", value=value))) < 300


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("s3://key:word@bucket/x", "s3://…@bucket/x"),
        ("at 's3://key:word/with/slashes@bucket/x' and 'http://word@host'", "at 's3://…@bucket/x' and 'http://…@host'"),
        ("s3:/key:word@bucket/x", "s3:/…@bucket/x"),
        ("https://host/x?X-Amz-Signature=word&a=b", "https://host/x?X-Amz-Signature=…&a=b"),
        ("s3://bucket/prefix/me@home", "s3://bucket/prefix/me@home"),
        ("a: b@c, d://e", "a: b@c, d://e"),
    ],
)
def test_credentials_in_an_address_are_not_shown(given: str, shown: str) -> None:
    assert errors.without_credentials(given) == shown
    error = errors.InputError(given, where=given, value=given, allowed=given)
    assert "word" not in str(error)
    assert "word" not in str(errors.InputError("what", value=[f"s3://key:{'word' * 100}@bucket"]))


def test_hiding_credentials_takes_no_time() -> None:
    text = "://" + ":/" * 100_000 + "?" + "&" * 100_000 + "token" * 100_000
    assert errors.without_credentials(text) == text


def test_the_drawing_names_every_error() -> None:
    assert errors.__doc__
    assert set(re.findall(r"\b(\w+Error)\b", errors.__doc__)) == {kind.__name__ for kind in KINDS}
