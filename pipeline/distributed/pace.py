"""How fast a launch is and when it will end, from evaluations: images of many steps take longer than others."""

from collections.abc import Iterable, Iterator

from pipeline.distributed.report import Progress, Telling

SILENT_S = 600.0
"""A process that has told nothing for so long, and for ten times as long as it took before, is taken for gone."""


def left_s(now_s: float, progress: Progress) -> float | None:
    """Seconds until all is done; None where nobody can know.

    What engines have under way counts as they told last, and as they went on since at their rate.
    """
    alive = list(_alive(now_s, progress.tellings))
    rate = evaluations_per_s(alive)
    if not rate:
        return None
    ahead = sum(one.evaluations - one.committed + one.rate * (now_s - one.at_s) for one in alive)
    return max(0.0, (progress.total.evaluations - progress.evaluations - ahead) / rate)


def images_per_s(now_s: float, progress: Progress) -> float | None:
    """Of images of the launch's average cost, at the rate that ``left_s`` counts with."""
    rate = evaluations_per_s(_alive(now_s, progress.tellings))
    if not rate or not progress.total.evaluations:
        return None
    return rate * progress.total.images / progress.total.evaluations


def evaluations_per_s(tellings: Iterable[Telling]) -> float:
    """Of all engines together while they work: neither Ray's start nor the loading of models is in it."""
    return sum(telling.rate for telling in tellings)


def _alive(now_s: float, tellings: Iterable[Telling]) -> Iterator[Telling]:
    for telling in tellings:
        if now_s - telling.at_s < max(SILENT_S, 10 * (telling.at_s - telling.first_at_s)):
            yield telling
