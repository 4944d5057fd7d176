"""Names of schedulers in AUTOMATIC1111's web UI and its successors."""

from collections.abc import Mapping

from pipeline.schedulers import SCHEDULERS, scheduler_of

SAMPLERS: Mapping[str, str] = {
    "ddim": "DDIM",
    "ddpm": "DDPM",
    "euler": "Euler",
    "euler_ancestral": "Euler a",
    "dpmsolver++": "DPM++ 2M",
    "dpmsolver++_sde": "DPM++ 2M SDE",
    "deis": "DEIS",
    "unipc": "UniPC",
    "pndm": "PLMS",
    "heun": "Heun",
    "lms": "LMS",
    "kdpm2": "DPM2",
    "kdpm2_ancestral": "DPM2 a",
    "sasolver": "SA Solver",
    "lcm": "LCM",
    "flow_match_euler": "Euler",
    "flow_match_heun": "Heun",
}
"""Our schedulers as the web UI, or its successors, call them."""
_SCHEDULES = {"karras": "Karras", "exponential": "Exponential", "beta": "Beta"}


def sampler_name(scheduler: str) -> str:
    """``dpmsolver++:karras`` to ``DPM++ 2M Karras``; other options have no name there."""
    found = scheduler_of(scheduler)
    options = found.text.split(":")[1:]
    return " ".join([SAMPLERS[found.name], *(_SCHEDULES[option] for option in options if option in _SCHEDULES)])


def scheduler_named(sampler: str) -> str | None:
    """``DPM++ 2M Karras`` to ``dpmsolver++:karras``; None for a name that ``sampler_name`` never gives.

    The name is read without case. ``Euler`` and ``Heun`` are those of models that are not trained by flow matching.
    """
    return _BY_NAME.get(" ".join(sampler.casefold().split()))


def _named() -> Mapping[str, str]:
    every = [name for name, kind in SCHEDULERS.items() if not kind.flow]
    every += [
        f"{name}:{option}" for name in every for option in SCHEDULERS[name].sigma_schedules if option in _SCHEDULES
    ]
    return {sampler_name(text).casefold(): text for text in every}


_BY_NAME = _named()
