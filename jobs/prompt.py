"""``--prompt``: a job about one prompt, which needs no manifest of the user's."""

import io
from hashlib import blake2b

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.config import Job
from pipeline.errors import InputError, OutputError, StoreError
from pipeline.output.layout import prompt_key
from pipeline.prepare import s3_settings
from pipeline.storage.location import open_store

NO_MANIFEST = "--prompt"
"""Stands for the manifest until there is one."""


def with_prompt(job: Job, prompt: str, negative_prompt: str | None) -> Job:
    """The job with a manifest of one row, written into its output, where every worker can read it.

    Raises ``InputError`` for a prompt that no row may have.
    """
    _check(prompt, "--prompt")
    _check(negative_prompt or "-", "--negative-prompt")
    given = {"prompt": prompt, "negative_prompt": negative_prompt}
    table = pa.table({name: [text] for name, text in given.items() if text is not None})
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    uri = job.output.uri
    assert uri is not None  # load_job fills it in
    key = prompt_key(blake2b(f"{prompt}\0{negative_prompt or ''}".encode(), digest_size=16).hexdigest())
    store = open_store(uri, s3_settings(job).impatient(), where="output.uri")
    try:
        store.put(key, buffer.getvalue())
    except StoreError as error:
        raise OutputError(f"the output cannot be written: {error}", where="output.uri", value=uri) from None
    return job.model_copy(update={"manifest": f"{store.uri}/{key}", "manifest_columns": {}})


def _check(text: str, where: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InputError("this is no text in UTF-8", where=where, value=text, allowed="text in UTF-8") from None
    if not text.strip() or "\0" in text:
        raise InputError("there is nothing to draw", where=where, value=text, allowed="a text with something in it")
