"""The actor: a loaded model, an engine, a store; shards in, outcome rows out. No pixel leaves it but to the store."""

import asyncio
import os
import socket
import uuid

import pyarrow as pa
import torch

from pipeline.distributed.runner import ShardRunner
from pipeline.distributed.shards import unpack
from pipeline.distributed.spec import WorkerSpec
from pipeline.errors import DarkroomError, ModelError
from pipeline.model.fingerprint import DigestCache, fingerprint
from pipeline.output.part import PartWriter
from pipeline.rendering.renderer import load_renderer
from pipeline.storage.location import open_store

OUTCOME_COLUMNS = (
    "task_id", "status", "verdict", "error", "prompt_id", "manifest_file", "manifest_row", "file_bytes", "render_s",
    "encode_s",
)  # fmt: skip


class RenderWorker:
    """Loads the model once and renders every shard it is given. Used by Ray Data as a map over blocks."""

    def __init__(self, spec: WorkerSpec) -> None:
        self._broken: DarkroomError | None = None
        try:
            self._load(spec)
        except DarkroomError as error:  # Ray would only try again; the first shard tells the driver
            self._broken = error
        self._identity = {"worker": f"{socket.gethostname()}:{os.getpid()}", "model_load": uuid.uuid4().hex}

    def _load(self, spec: WorkerSpec) -> None:
        torch.set_num_threads(spec.threads)
        folder = spec.model.folder()
        loras = spec.model.lora_files()
        found = fingerprint(folder, DigestCache(spec.cache_folder), loras)
        if found != spec.facts.model_fingerprint:
            raise ModelError("a worker found other model files than the driver", where=str(folder), value=found)
        engine = load_renderer(
            folder,
            dtype=spec.facts.dtype,
            device=spec.device,
            rows=spec.rows,
            loras=loras,
            compiled=spec.compiled,
            call=spec.call,
        )
        store = open_store(spec.output_uri, spec.s3)
        self._runner = ShardRunner(engine, lambda shard: PartWriter(store, shard, spec.facts))

    async def __call__(self, block: pa.Table) -> pa.Table:
        if self._broken is not None:
            raise self._broken
        shards = list(unpack(block))
        done = await asyncio.gather(*(asyncio.wrap_future(self._runner.submit(shard)) for shard in shards))
        return pa.concat_tables(self._outcomes(shard, rows) for shard, rows in zip(shards, done, strict=True))

    def _outcomes(self, shard: pa.Table, rows: pa.Table) -> pa.Table:
        outcomes = rows.select(OUTCOME_COLUMNS).append_column("evaluations", shard["evaluations"])
        for name, value in self._identity.items():
            outcomes = outcomes.append_column(name, pa.array([value] * outcomes.num_rows, pa.string()))
        return outcomes
