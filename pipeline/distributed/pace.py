"""How fast a launch is and when it will end, from megapixel-evaluations: images differ in steps and size."""

from collections.abc import Iterable, Iterator

from pipeline.distributed.report import Progress, Telling

SILENT_S = 600.0
"""A process that has told nothing for so long, and for ten times as long as it took before, is taken for gone."""


def left_s(now_s: float, progress: Progress) -> float | None:
    """Seconds until all is done; None where nobody can know.

    What engines have under way counts as they told last, and as they went on since at their rate.
    """
    rate = _together(_alive(now_s, progress.tellings))
    if not rate:
        return None
    return max(0.0, (_missing(progress) - _ahead(now_s, progress)) / rate)


def images_per_s(now_s: float, progress: Progress) -> float | None:
    """Of images of the launch's average cost, at the rate that ``left_s`` counts with: that of the last minute."""
    rate = _together(_alive(now_s, progress.tellings))
    if not rate or not progress.total.megapixel_evaluations:
        return None
    return rate * progress.total.images / progress.total.megapixel_evaluations


def megapixel_evaluations_per_s(tellings: Iterable[Telling]) -> float:
    """Of all engines together while they worked: neither Ray's start nor the loading of models is in it."""
    return sum(telling.mean_rate for telling in tellings)


def _missing(progress: Progress) -> float:
    return progress.total.megapixel_evaluations - progress.megapixel_evaluations


def _ahead(now_s: float, progress: Progress) -> float:
    """Megapixel-evaluations of images that have no outcome yet."""
    alive = _alive(now_s, progress.tellings)
    return sum(max(0.0, one.last.work - one.committed + one.rate * (now_s - one.last.at_s)) for one in alive)


def _together(tellings: Iterable[Telling]) -> float:
    return sum(telling.rate for telling in tellings)


def _alive(now_s: float, tellings: Iterable[Telling]) -> Iterator[Telling]:
    for telling in tellings:
        if now_s - telling.last.at_s < max(SILENT_S, 10 * (telling.last.at_s - telling.recent[0].at_s)):
            yield telling
