"""Read prompt rows: validated, typed, streamed row group by row group in bounded memory."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import ManifestError
from pipeline.manifest import cells
from pipeline.manifest.columns import BATCH_SCHEMA
from pipeline.manifest.open import Manifest, ManifestFile, Split, runs
from pipeline.manifest.rules import RowRules
from pipeline.manifest.verdicts import RejectedRow, Verdicts
from pipeline.parquet import ParquetReader

BATCH_ROWS = 16_384


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Some rows of one file, in order."""

    table: pa.Table
    """The good ones: ``BATCH_SCHEMA``, then the manifest's extra columns."""
    rejected: tuple[RejectedRow, ...]
    first_row: int
    """The file's first row, counted over the whole manifest: add ``manifest_row`` for a row's number."""


def read_rows(manifest: Manifest, split: Split | None = None) -> Iterator[Batch]:
    """All rows of the manifest, or of one split. ``ManifestError`` for a file that breaks off or has changed."""
    if split is not None:
        yield from _read_split(manifest, split)
        return
    for index, file in enumerate(manifest.files):
        yield from _read_split(manifest, Split(file_index=index, start=0, stop=len(file.row_groups)))


def _read_split(manifest: Manifest, split: Split) -> Iterator[Batch]:
    file = manifest.files[split.file_index]
    for row, read in _record_batches(manifest, file, split):
        yield _checked(read, row, file, manifest)


def _record_batches(manifest: Manifest, file: ManifestFile, split: Split) -> Iterator[tuple[int, pa.RecordBatch]]:
    """Batches as they are in the file, each with its first row."""
    row = sum(file.row_groups[: split.start])
    wanted = {*file.columns.values(), *file.extras.values()}
    try:
        with manifest.store.open(file.key) as opened:
            parquet = ParquetReader(opened, verify_checksums=True)
            _check_unchanged(parquet, file)
            if not any(file.row_groups):
                return
            names = [name for name in parquet.schema.names if name in wanted] or parquet.schema.names[:1]
            # What one call reads is held until it is through: hence a few row groups at a time.
            for run in runs(file.row_groups[split.start : split.stop], BATCH_ROWS):
                groups = [split.start + number for number in run]
                for read in parquet.batches(BATCH_ROWS, names, groups):
                    yield row, _with_stated(read, file.stated)
                    row += read.num_rows
    except (pa.ArrowException, OSError) as error:
        raise ManifestError(f"the manifest breaks off: {error}", where=f"{file.name}, from row {row}") from None


def _with_stated(read: pa.RecordBatch, stated: Mapping[str, str | None]) -> pa.RecordBatch:
    """The batch with the columns that the folders' names state."""
    for name, value in stated.items():
        read = read.append_column(name, pa.repeat(pa.scalar(value, pa.string()), read.num_rows))
    return read


def _check_unchanged(read: ParquetReader, file: ManifestFile) -> None:
    if read.row_groups != file.row_groups:
        raise ManifestError(
            "the manifest changed while it was in use", where=file.name, allowed="the same file throughout"
        )


def _checked(read: pa.RecordBatch, first: int, file: ManifestFile, manifest: Manifest) -> Batch:
    verdicts = Verdicts(read.num_rows)
    columns = _typed(read, file.columns, manifest.rules, verdicts)
    numbers = pa.array(np.arange(first, first + read.num_rows), pa.int64())
    stem = PurePosixPath(file.name).stem
    defaults = pc.binary_join_element_wise(stem, numbers.cast(pa.string()), ":")
    columns["prompt_id"] = pc.coalesce(columns["prompt_id"], defaults)
    columns["manifest_file"] = pa.repeat(pa.scalar(file.name, pa.string()), read.num_rows)
    columns["manifest_row"] = numbers
    arrays = [columns[name] for name in BATCH_SCHEMA.names] + [
        _extra(read, field, file.extras.get(field.name), verdicts) for field in manifest.extra_schema
    ]
    table = pa.table(arrays, schema=pa.schema([*BATCH_SCHEMA, *manifest.extra_schema]))
    rejected = tuple(verdicts.rejected(file.name, first))
    return Batch(
        table=table.filter(pa.array(verdicts.good())) if rejected else table,
        rejected=rejected,
        first_row=file.first_row,
    )


def _typed(read: pa.RecordBatch, theirs: Mapping[str, str], rules: RowRules, verdicts: Verdicts) -> dict[str, pa.Array]:
    typed = {name: pa.nulls(read.num_rows, BATCH_SCHEMA.field(name).type) for name in BATCH_SCHEMA.names}
    side = {"low": 1, "high": rules.max_side_px, "kind": pa.uint32(), "divisor": rules.size_factor}
    for ours, name in theirs.items():
        column = read[name]
        if ours == "prompt":
            typed[ours] = cells.text(column, name, verdicts, required=True)
            cells.blocked(typed[ours], name, verdicts, rules.blocklist)
        elif ours == "negative_prompt":
            typed[ours] = cells.text(column, name, verdicts)
        elif ours == "prompt_id":
            typed[ours] = cells.names(column, name, verdicts)
        elif ours == "seed":
            typed["seeds"] = cells.single_seeds(column, name, verdicts, rules.max_seed)
        elif ours == "seeds":
            typed[ours] = cells.seed_lists(column, name, verdicts, rules.max_seed)
        elif ours == "guidance_scale":
            typed[ours] = cells.numbers(column, name, verdicts, rules.max_guidance)
        elif ours == "num_inference_steps":
            typed[ours] = cells.whole_numbers(column, name, verdicts, 1, rules.max_steps, pa.uint32())
        elif ours == "scheduler":
            typed[ours] = cells.schedulers(column, name, verdicts, rules)
        else:
            typed[ours] = cells.whole_numbers(column, name, verdicts, **side)
    if "width" in theirs:
        cells.sides_together(typed["width"], typed["height"], theirs["width"], verdicts)
    return typed


def _extra(read: pa.RecordBatch, field: pa.Field, theirs: str | None, verdicts: Verdicts) -> pa.Array:
    if theirs is None:
        return pa.nulls(read.num_rows, field.type)
    return cells.untouched(read[theirs], theirs, verdicts, field.type)
