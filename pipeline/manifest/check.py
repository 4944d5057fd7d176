"""A manifest looked through as a whole: how much of it is good, and what to tell about the rest."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from pipeline.errors import ManifestError
from pipeline.manifest.advice import as_mapping
from pipeline.manifest.open import Manifest
from pipeline.manifest.read import read_rows
from pipeline.manifest.survey import OwnValues, Survey
from pipeline.manifest.verdicts import RejectedRow


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckResult:
    rows: int
    good: int
    rejected_count: int
    rejected: tuple[RejectedRow, ...]
    """The first few."""
    own_values: tuple[OwnValues, ...] = ()
    warnings: tuple[str, ...] = ()
    """Sentences about the good rows."""


def check_manifest(manifest: Manifest, show: int = 10) -> CheckResult:
    """Read every row once."""
    rows = rejected_count = 0
    rejected: list[RejectedRow] = []
    survey = Survey()
    for batch in read_rows(manifest):
        survey.see(batch.table)
        rows += batch.table.num_rows + len(batch.rejected)
        rejected_count += len(batch.rejected)
        rejected += batch.rejected[: show - len(rejected)]
    return CheckResult(
        rows=rows,
        good=rows - rejected_count,
        rejected_count=rejected_count,
        rejected=tuple(rejected),
        own_values=survey.own_values(manifest.files),
        warnings=survey.warnings(),
    )


def _not_meant(rejected: Iterable[RejectedRow], manifest: Manifest) -> Iterator[str]:
    """Yield what to write where columns of sizes describe other images, as in tables of the web."""
    bad = {row.column for row in rejected}
    for file in manifest.files:
        sides = [file.columns[side] for side in ("width", "height") if side in file.columns]
        if bad.intersection(sides):
            mapping = as_mapping(dict.fromkeys(sides))
            yield f"  if these are not the sizes to render, manifest_columns: {mapping} leaves the columns out"
            return


def rejection_error(result: CheckResult, manifest: Manifest) -> ManifestError:
    """What a person needs to mend the manifest."""
    first = result.rejected[0]
    lines = [f"{result.rejected_count} of {result.rows} manifest rows cannot be used"]
    lines += [f"  - {row}" for row in result.rejected]
    more = result.rejected_count - len(result.rejected)
    lines += [f"  … and {more} more"] if more > 0 else []
    lines += _not_meant(result.rejected, manifest)
    if result.rejected_count < result.rows:
        lines += ["  `darkroom render --skip-bad-rows` renders the rest and reports these"]
    place = f"{manifest.store.uri}/{first.file}, row {first.row} (from 0), column {first.column}"
    return ManifestError("\n".join(lines), where=place)
