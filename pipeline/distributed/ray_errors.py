"""Our own errors out of what Ray wraps them in."""

from typing import Any

import ray

from pipeline.errors import DarkroomError, JobBrokenError

_ADVICE = "\nFailed to apply UDF transform after"
"""Begins what Ray Data adds to the text of a worker's error: how to have it try again. Here the store does that."""


def our_error(error: BaseException) -> DarkroomError:
    """Our own error inside Ray's wrapping, else what a worker raised first."""
    cause: BaseException | None = error
    innermost = error
    while cause is not None:
        # Ray's wrapper of a remote error is also an instance of that error's class, with a traceback as its text.
        if isinstance(cause, DarkroomError) and not isinstance(cause, ray.exceptions.RayError):
            cause.args = tuple(_without_advice(item) for item in cause.args)
            return cause
        innermost = cause
        cause = getattr(cause, "cause", None) or cause.__cause__
    if isinstance(innermost, ray.exceptions.RayError):
        return JobBrokenError(f"Ray gave up: {str(innermost).strip().splitlines()[-1]}")
    return JobBrokenError(f"a worker failed: {type(innermost).__name__}: {_without_advice(str(innermost))}")


def _without_advice(text: Any) -> Any:
    return text.partition(_ADVICE)[0] if isinstance(text, str) else text
