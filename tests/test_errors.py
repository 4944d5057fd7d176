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


def test_the_drawing_names_every_error() -> None:
    assert errors.__doc__
    assert set(re.findall(r"\b(\w+Error)\b", errors.__doc__)) == {kind.__name__ for kind in KINDS}
