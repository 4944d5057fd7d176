"""An index that pandas describes in a Parquet file instead of writing it as a column."""

import json
from collections.abc import Iterable

import pyarrow as pa


def lost_index(schema: pa.Schema) -> str | None:
    """Return the name of a pandas index that is a range such as 0, 1, 2 and no column; None where there is none.

    pandas writes such an index as three numbers into the metadata of the file, also after ``set_index("seed")``.
    """
    try:
        found = json.loads((schema.metadata or {}).get(b"pandas", b"{}"))["index_columns"]
        names = [index["name"] for index in found if isinstance(index, dict)]
    except (ValueError, LookupError, TypeError):
        return None
    return next((str(name) for name in names if name is not None and name not in schema.names), None)


def lost_index_warnings(names: Iterable[str | None]) -> tuple[str, ...]:
    """Return a sentence for every name of such an index."""
    return tuple(
        f"the pandas index {name!r} is no column of the file and has no effect; "
        "DataFrame.reset_index() before to_parquet() makes it one"
        for name in dict.fromkeys(names)
        if name is not None
    )
