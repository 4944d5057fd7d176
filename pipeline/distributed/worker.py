"""The actor: a loaded model, an engine, a store; shards in, outcome rows out. No pixel leaves it but to the store."""

import asyncio
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import ray
import torch

from pipeline.distributed.leases import DEATHS_BEFORE_ALONE, Floor, Suspicions
from pipeline.distributed.runner import ShardRunner, tasks_of
from pipeline.distributed.shards import unpack
from pipeline.distributed.spec import WorkerSpec
from pipeline.distributed.watchdog import die, watch
from pipeline.distributed.worker_log import WorkerLog
from pipeline.errors import DarkroomError, ModelError
from pipeline.identity import part_id
from pipeline.model.fingerprint import DigestCache, fingerprint
from pipeline.output.attempts import Attempts, Process
from pipeline.output.part import PartWriter
from pipeline.output.schema import METADATA_SCHEMA
from pipeline.rendering.devices import device_error
from pipeline.rendering.renderer import load_renderer
from pipeline.rendering.results import Failed
from pipeline.storage.location import open_store

OUTCOME_COLUMNS = (
    "task_id", "file_name", "status", "verdict", "error", "prompt_id", "manifest_file", "manifest_row", "file_bytes",
    "render_s", "encode_s",
)  # fmt: skip

_OUTCOME_SCHEMA = pa.schema(
    [*(METADATA_SCHEMA.field(name).with_nullable(True) for name in OUTCOME_COLUMNS), ("evaluations", pa.uint32())]
)
STOPPED = "stopped"
"""In place of a status, in the one row of a shard that was not begun because the launch stops."""


class RenderWorker:
    """Loads the model once and renders every shard it is given. Used by Ray Data as a map over blocks."""

    def __init__(self, spec: WorkerSpec) -> None:
        self._broken: DarkroomError | None = None
        self._process = Process(node_id=ray.get_runtime_context().get_node_id(), process_id=uuid.uuid4().hex)
        self._floor, self._stopping, self._in_hand = Floor(), False, 0
        self._identity = {"worker": f"{socket.gethostname()}:{os.getpid()}", "model_load": self._process.process_id}
        self._log = WorkerLog(
            {
                "job": ray.get_runtime_context().get_job_id(),
                "launch": spec.launch_id,
                "node": self._process.node_id,
                "worker": self._identity["worker"],
            }
        )
        began = time.monotonic()
        try:
            self._load(spec)
        except DarkroomError as error:  # Ray would only try again; the first shard tells the driver
            self._broken = error
            self._log.broken(str(error))
        else:
            self._log.ready(device=spec.device, rows=spec.rows, seconds=time.monotonic() - began)

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
        self._open_part: Callable[[pa.Table], PartWriter] = lambda shard: PartWriter(store, shard, spec.facts)
        self._runner = ShardRunner(engine, self._open_part)
        watch(self._runner, spec.watchdog_s)
        self._attempts = Attempts(store, spec.launch_id, self._process)
        self._suspicions = Suspicions(self._attempts, node_gone)
        if spec.board is not None:
            threading.Thread(target=self._follow, args=(spec.board,), name="stop", daemon=True).start()

    async def __call__(self, block: pa.Table) -> pa.Table:
        if self._broken is not None:
            raise self._broken
        return pa.concat_tables(await asyncio.gather(*(self._render(shard) for shard in unpack(block))))

    async def _render(self, shard: pa.Table) -> pa.Table:
        """The outcomes of a shard; a row that says so when the launch stops before it is begun."""
        if self._stopping:
            return self._identified(pa.Table.from_pylist([{"status": STOPPED}], schema=_OUTCOME_SCHEMA))
        name, began = part_id(shard["task_id"].to_pylist()), time.monotonic()
        self._in_hand += 1
        try:
            if await asyncio.to_thread(self._suspicions.deaths, name) < DEATHS_BEFORE_ALONE:
                async with self._floor.shared():
                    rows = await self._attempt(shard, name)
            else:
                async with self._floor.alone():
                    rows = await self._one_by_one(shard)
                await asyncio.to_thread(self._attempts.end, name)
        except DarkroomError as error:
            self._log.broken(str(error), name)
            raise
        finally:
            self._in_hand -= 1
        failed = rows.num_rows - pc.sum(pc.equal(rows["status"], "ok"), min_count=0).as_py()
        self._log.shard(name, images=rows.num_rows, failed=failed, seconds=time.monotonic() - began)
        return self._outcomes(shard, rows)

    async def _attempt(self, shard: pa.Table, name: str) -> pa.Table:
        await asyncio.to_thread(self._attempts.begin, name)
        try:
            rows = await asyncio.wrap_future(self._runner.submit(shard))
        except Exception as error:
            if not device_error(error):
                raise
            die(f"the device is of no use to this process any more: {type(error).__name__}: {error}")
        await asyncio.to_thread(self._attempts.end, name)
        return rows

    async def _one_by_one(self, shard: pa.Table) -> pa.Table:
        """Each task as a shard of its own, with nothing beside it; what kills the process again is quarantined."""
        done = [METADATA_SCHEMA.empty_table()]
        for number in range(shard.num_rows):
            if self._stopping:
                break
            single = shard.slice(number, 1)
            name = part_id(single["task_id"].to_pylist())
            deaths = await asyncio.to_thread(self._suspicions.deaths, name)
            if deaths:
                done.append(await asyncio.to_thread(self._quarantine, single))
                await asyncio.to_thread(self._attempts.end, name)
            else:
                done.append(await self._attempt(single, name))
        return pa.concat_tables(done, promote_options="default")

    def _quarantine(self, single: pa.Table) -> pa.Table:
        (task,) = tasks_of(single)
        died = f"ProcessDied: {DEATHS_BEFORE_ALONE} workers died with it among others, one while it was rendered alone"
        part = self._open_part(single)
        part.put(Failed(task=task, stage="process", verdict="quarantined", error=died), datetime.now(UTC))
        return part.commit()

    def _follow(self, board: Any) -> None:
        """Learn that the launch stops, and tell when nothing is in hand any more."""
        me = self._process.process_id
        with suppress(ray.exceptions.RayError):  # the driver is gone, and Ray ends this process
            ray.get(board.wait_for_stop.remote(me))
            self._stopping = True
            self._runner.stop()
            while self._in_hand:
                time.sleep(0.05)
            ray.get(board.idle.remote(me))

    def _outcomes(self, shard: pa.Table, rows: pa.Table) -> pa.Table:
        ids = pa.array([task_id.hex() for task_id in shard["task_id"].to_pylist()])
        evaluations = shard["evaluations"].take(pc.index_in(rows["task_id"], ids).combine_chunks())
        return self._identified(
            rows.select(OUTCOME_COLUMNS).append_column("evaluations", evaluations).cast(_OUTCOME_SCHEMA)
        )

    def _identified(self, outcomes: pa.Table) -> pa.Table:
        for name, value in self._identity.items():
            outcomes = outcomes.append_column(name, pa.array([value] * outcomes.num_rows, pa.string()))
        return outcomes


def node_gone(node_id: str) -> bool:
    """Whether a node is no longer part of the cluster."""
    return not any(node["Alive"] and node["NodeID"] == node_id for node in ray.nodes())
