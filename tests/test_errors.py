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


def test_the_drawing_names_every_error() -> None:
    assert errors.__doc__
    assert set(re.findall(r"\b(\w+Error)\b", errors.__doc__)) == {kind.__name__ for kind in KINDS}
