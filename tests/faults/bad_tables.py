"""Columns of a manifest that are unusual and good, or bad as a whole."""

import random
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa

from pipeline.manifest.columns import COLUMNS
from pipeline.output.schema import RESERVED
from tests.faults.trials import Cells, Make, Trial, Verdict, good_row, good_rows, settings, table_of, write_table

_NOON = datetime(2026, 1, 2, 12, tzinfo=UTC)
_EXTREMES = (10**6, -(10**6), 10**11, 10**15, -(10**15), 2**62, -(2**62), 2**63)
_TIMES = {
    "far day": pa.date32(),
    "far moment": pa.timestamp("us"),
    "far moment in ms": pa.timestamp("ms", tz="Europe/Berlin"),
    "moment in ns": pa.timestamp("ns", tz="UTC"),
    "moment elsewhere": pa.timestamp("us", tz="Mars/Phobos"),
    "long time": pa.duration("ms"),
}
"""Extra columns of times; Python has no place for many of their values."""
_CASES = (str.lower, str.upper, str.title)
_OWN = ["task_id", *sorted(RESERVED - COLUMNS.keys())]


def _dictionaries(_: random.Random, rows: list[Cells]) -> pa.Table:
    table = table_of(rows)
    return pa.table({name: table[name].dictionary_encode() for name in table.column_names})


def _large_texts(drawn: random.Random, rows: list[Cells]) -> pa.Table:
    kind = drawn.choice([pa.large_string(), pa.string_view()])
    return table_of(rows, {"prompt": kind, "negative_prompt": kind})


def _any_case(drawn: random.Random, rows: list[Cells]) -> pa.Table:
    table = table_of(rows, {"seed": pa.int64(), "guidance_scale": pa.null()})
    return table.rename_columns([drawn.choice(_CASES)(name) for name in table.column_names])


def _blanks_around_names(drawn: random.Random, rows: list[Cells]) -> pa.Table:
    table = table_of(rows)
    return table.rename_columns([f"{drawn.choice(['', ' ', chr(0xFEFF)])}{name} " for name in table.column_names])


def _decimals_and_times(drawn: random.Random, rows: list[Cells]) -> pa.Table:
    def more() -> Cells:
        scale = Decimal(drawn.randrange(10**6)) / 1000
        return {"guidance_scale": drawn.choice([None, scale]), "when": _NOON, "cost": scale, "day": _NOON.date()}

    table = table_of(
        [row | more() for row in rows], {"cost": pa.decimal256(50, 9), "when": pa.timestamp("us", tz="UTC")}
    )
    for name, kind in _TIMES.items():
        numbers = [drawn.choice([None, 0, -1, *_EXTREMES]) for _ in rows]
        width = pa.int32() if kind.bit_width == 32 else pa.int64()
        most = 2 ** (kind.bit_width - 1) - 1
        kept = [number if number is None else max(-most, min(most, number)) for number in numbers]
        table = table.append_column(name, pa.array(kept, width).view(kind))
    inner = pa.StructArray.from_arrays([table[name].combine_chunks() for name in _TIMES], names=[*_TIMES])
    return table.append_column("times", inner)


def _nested(drawn: random.Random, rows: list[Cells]) -> pa.Table:
    meta = pa.struct([("author", pa.string()), ("tags", pa.list_(pa.string()))])
    cells: list[Cells | None] = [None, {"author": "x", "tags": ["y", None]}, {"author": None, "tags": []}]
    return table_of([row | {"meta": drawn.choice(cells)} for row in rows], {"meta": meta, "raw": pa.binary()})


def _numbers_as_names(drawn: random.Random, rows: list[Cells]) -> pa.Table:
    return table_of([row | {"prompt_id": drawn.randrange(-9, 9)} for row in rows], {"prompt_id": pa.int8()})


def _numbers_as_texts(drawn: random.Random, rows: list[Cells]) -> pa.Table:
    def more() -> Cells:
        return {"seed": drawn.choice(["7", " 7.0", "", None, str(2**64 - 1)]), "width": "96", "height": drawn.choice([
            "96", "0128"])}  # fmt: skip

    return table_of([row | more() for row in rows], {"seed": pa.string()})


def _nulls(_: random.Random, rows: list[Cells]) -> pa.Table:
    return table_of(rows, dict.fromkeys(("seed", "steps", "scheduler", "width", "height", "prompt_id"), pa.null()))


UNUSUAL: Mapping[str, Callable[[random.Random, list[Cells]], pa.Table]] = {
    "dictionary-encoded columns": _dictionaries,
    "large strings and views": _large_texts,
    "column names in any case": _any_case,
    "column names with blanks around them": _blanks_around_names,
    "decimals and times": _decimals_and_times,
    "nested extra columns": _nested,
    "numbers as prompt_id, repeated": _numbers_as_names,
    "columns of nothing but nulls": _nulls,
    "numbers as texts": _numbers_as_texts,
}
"""Every row of these is good."""


def _unusual(make: Callable[[random.Random, list[Cells]], pa.Table], drawn: random.Random, folder: Path) -> Trial:
    rows = good_rows(drawn)
    write_table(folder / "m" / "a.parquet", make(drawn, rows), drawn.randint(1, 50))
    return Trial(settings=settings(folder), usable=frozenset(range(len(rows))))


def _with(table: pa.Table, **cells: Any) -> pa.Table:
    """With these columns added or put in place of others, the same cell in each row."""
    for name, cell in cells.items():
        if name in table.column_names:
            table = table.drop_columns([name])
        table = table.append_column(name, pa.array([cell] * table.num_rows))
    return table


def _without_prompts(drawn: random.Random, table: pa.Table) -> pa.Table:
    return table.rename_columns([drawn.choice(["text", "promt", "caption", "", "prompt_"]), "n", "m"])


def _other_prompts(drawn: random.Random, table: pa.Table) -> pa.Table:
    return _with(table, prompt=drawn.choice([1, True, b"a", ["a"], {"a": "b"}, _NOON, Decimal("1.5")]))


_WRONG: Mapping[str, tuple[Any, ...]] = {
    "seed": (True, [1], _NOON, b"1", timedelta(1)),
    "seeds": (1, [[1]], [True]),
    "guidance_scale": (False, [7.5], timedelta(1)),
    "steps": (True, _NOON, {"steps": 1}),
    "scheduler": (1, ["ddim"], b"ddim"),
    "negative_prompt": (1, ["no"], {"text": "no"}),
    "prompt_id": (timedelta(1), [1]),
}


def _other_types(drawn: random.Random, table: pa.Table) -> pa.Table:
    name = drawn.choice([*_WRONG])
    return _with(table, **{name: drawn.choice(_WRONG[name])})


def _twice(drawn: random.Random, table: pa.Table) -> pa.Table:
    return table.append_column(drawn.choice(["prompt", "note"]), pa.array(["a"] * table.num_rows))


BAD: Mapping[str, Callable[[random.Random, pa.Table], pa.Table]] = {
    "no prompt column": _without_prompts,
    "prompts of another type": _other_prompts,
    "a column of ours of another type": _other_types,
    "columns that differ by case": lambda drawn, table: _with(table, **{drawn.choice(["PROMPT", "Prompt"]): "a"}),
    "a column twice": _twice,
    "steps under two names": lambda _, table: _with(table, steps=2, num_inference_steps=2),
    "seed and seeds": lambda _, table: _with(table, seed=1, seeds=[1]),
    "reserved columns": lambda drawn, table: _with(table, **{drawn.choice(_OWN): "a"}),
    "width column without height column": lambda drawn, table: _with(table, **{drawn.choice(["width", "height"]): 96}),
}
"""Nothing of a manifest with such a file can be used."""


def _bad(make: Callable[[random.Random, pa.Table], pa.Table], drawn: random.Random, folder: Path) -> Trial:
    write_table(folder / "m" / "a.parquet", table_of(good_rows(drawn)))
    bad = make(drawn, table_of([good_row(drawn, 0), good_row(drawn, 1)]))
    write_table(folder / "m" / drawn.choice(["b.parquet", "0.parquet"]), bad)
    return Trial(settings=settings(folder), usable=Verdict.REFUSED)


TABLES: Mapping[str, Make] = {
    **{name: partial(_unusual, make) for name, make in UNUSUAL.items()},
    **{name: partial(_bad, make) for name, make in BAD.items()},
}
