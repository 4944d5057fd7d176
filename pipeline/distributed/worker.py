"""The actor: a loaded model, an engine, a store; shards in, outcome rows out. No pixel leaves it but to the store."""

import asyncio
import os
import random
import socket
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import pyarrow as pa
import pyarrow.compute as pc
import ray

from pipeline.distributed.draining import draining_nodes
from pipeline.distributed.leases import DEATHS_BEFORE_ALONE, Floor, Suspicions
from pipeline.distributed.metrics import Metrics
from pipeline.distributed.outcomes import Teller, Worked
from pipeline.distributed.report import Drawn
from pipeline.distributed.runner import ShardRunner, tasks_of
from pipeline.distributed.shards import unpack
from pipeline.distributed.spec import WorkerSpec
from pipeline.distributed.watchdog import die, leave, watch
from pipeline.distributed.worker_log import WorkerLog
from pipeline.errors import DarkroomError, DeviceHeldError, JobBrokenError, ModelError
from pipeline.identity import part_id
from pipeline.model.fingerprint import DigestCache, fingerprint
from pipeline.model.resolve import in_this_home
from pipeline.output.attempts import Attempts, Process
from pipeline.output.part import PartWriter
from pipeline.output.schema import METADATA_SCHEMA
from pipeline.rendering.judge import load_judge
from pipeline.rendering.results import Failed
from pipeline.storage.location import open_store

if TYPE_CHECKING:
    from pipeline.rendering.device_memory import Patience
    from pipeline.rendering.renderer import Renderer

FAREWELL_S = 2.0
"""For the last outcomes to be on their way before the process ends."""
FIRST_PAUSE_S = 5.0
"""Before the model is asked for once more; each further pause is twice as long."""
_Loras = Sequence[tuple[Path, float]]
_Loaded = TypeVar("_Loaded")


class RenderWorker:
    """Loads the model once and renders every shard it is given. Used by Ray Data as a map over blocks."""

    def __init__(self, spec: WorkerSpec) -> None:
        self._broken: DarkroomError | None = None
        self._process = Process(node_id=ray.get_runtime_context().get_node_id(), process_id=uuid.uuid4().hex)
        self._floor, self._in_hand, self._told = Floor(), 0, 0
        self._stopping = self._leaving = False
        name = f"{socket.gethostname()}:{os.getpid()}"
        self._teller = Teller(worker=name, model_load=self._process.process_id)
        tags = {"launch": spec.launch_id, "node": self._process.node_id, "worker": name}
        self._log = WorkerLog({"job": ray.get_runtime_context().get_job_id(), **tags})
        began, self._board = time.monotonic(), spec.board
        try:
            self._load(spec)
        except DarkroomError as error:  # an actor that cannot be made again takes its shards along; the first one tells
            self._broken = error
            self._log.broken(str(error))
            return
        self._log.ready(device=spec.device, rows=spec.rows.fixed or "auto", seconds=time.monotonic() - began)
        self._metrics = Metrics(tags, self._worked, lambda: self._in_hand)

    def _load(self, spec: WorkerSpec) -> None:
        time.sleep(random.uniform(0.0, spec.start_within_s))
        folder, loras, found = self._find(spec)
        if found != spec.facts.model_fingerprint:
            raise ModelError("a worker found other model files than the driver", where=str(folder), value=found)
        self._engine = self._on_device(spec, folder, loras)
        self._store = store = open_store(spec.output_uri, spec.s3)
        self._open_part: Callable[[pa.Table], PartWriter] = lambda shard: PartWriter(store, shard, spec.facts)
        on, drop = {"dtype": spec.facts.dtype, "device": spec.device}, spec.drop_flagged
        judge = self._patiently(spec, partial(load_judge, folder, checked=spec.model.checked, drop=drop, **on))
        self._runner = ShardRunner(self._engine, self._open_part, judge)
        watch(self._runner, spec.watchdog_s)
        self._attempts = Attempts(store, spec.launch_id, self._process)
        self._suspicions = Suspicions(self._attempts, node_gone)
        if spec.board is not None:
            for name, follow in (("stop", self._follow), ("drawn", self._tell_of_drawn)):
                threading.Thread(target=follow, args=(spec.board,), name=name, daemon=True).start()

    def _find(self, spec: WorkerSpec) -> tuple[Path, _Loras, str]:
        """The model on this machine, and its fingerprint.

        The driver has got it: if it has to be fetched and does not come, this machine or this moment is to blame.
        """
        until, pause_s = time.monotonic() + spec.fetch_patience_s, FIRST_PAUSE_S
        while True:
            try:
                return self._files(spec)
            except ModelError as error:
                if not spec.model.remote:
                    raise
                if time.monotonic() + pause_s > until:
                    self._give_up(str(error))
                self._complain(str(error))
            time.sleep(pause_s)
            pause_s *= 2

    def _files(self, spec: WorkerSpec) -> tuple[Path, _Loras, str]:
        folder, loras = spec.model.folder(), spec.model.lora_files()
        return folder, loras, fingerprint(folder, DigestCache(in_this_home(spec.cache_folder) / "digests"), loras)

    def _complain(self, reason: str) -> None:
        """Say in the log and to the driver why this worker does not begin."""
        self._log.broken(reason)
        if self._board is not None:
            self._board.complain.remote(self._process.node_id, reason.splitlines()[0])

    def _give_up(self, reason: str) -> NoReturn:
        """End this process: Ray starts another one, elsewhere if it can.

        It would do so without end: raises ``JobBrokenError`` for the last of too many in a row.
        """
        self._complain(reason)
        if self._board is None or self._told_that(self._board.gave_up):
            raise JobBrokenError(f"too many workers in a row could not load the model, the last of them: {reason}")
        time.sleep(FIRST_PAUSE_S)  # the next one begins here too, as likely as not
        die("the model cannot be loaded here")

    def _told_that(self, question: Any) -> bool:
        """Return what a method of the board says; False where the board is lost, as others may go on."""
        with suppress(ray.exceptions.RayError):
            return bool(ray.get(question.remote()))
        return False

    def _on_device(self, spec: WorkerSpec, folder: Path, loras: _Loras) -> "Renderer":
        return self._patiently(spec, partial(self._renderer, spec, folder, loras))

    def _patiently(self, spec: WorkerSpec, load: Callable[[], _Loaded]) -> _Loaded:
        """Load something; after pauses where other processes hold the memory of the device."""
        from pipeline.rendering.devices import device_error, out_of_memory  # loads torch

        patience = self._patience(spec.device)
        while True:
            try:
                return load()
            except (RuntimeError, MemoryError) as error:
                if not device_error(error):
                    raise
                reason, full = f"{type(error).__name__}: {error}", out_of_memory(error)
            # Not in the handler, which would keep what the failed try has allocated.
            if not (full and patience.begin_pause()):
                if full and patience.held() is None:
                    self._check_fit(spec, f"the model does not fit on {spec.device}: {reason}")
                self._give_up(reason)
            self._complain(reason)
            while patience.doze():
                pass

    def _patience(self, device: str) -> "Patience":
        from pipeline.rendering.device_memory import Patience, read_memory  # loads torch

        return Patience(partial(read_memory, device))

    def _check_fit(self, spec: WorkerSpec, reason: str) -> None:
        """Raise ``ModelError`` unless this is the first device without room for the model that nobody else uses."""
        if self._board is not None:
            only = nodes_with("GPU" if spec.device == "cuda" else "CPU") <= 1
            try:
                ends = ray.get(self._board.does_not_fit.remote(self._process.node_id, only))
            except ray.exceptions.RayError:  # a board that is lost counts nobody, and others go on
                return
            if not ends:
                return
        raise ModelError(reason, where="model")

    def _renderer(self, spec: WorkerSpec, folder: Path, loras: _Loras) -> "Renderer":
        """The model, loaded."""
        # Imported here, as the driver imports this module too: torch and diffusers take seconds and hundreds of MiB.
        import torch

        from pipeline.rendering.renderer import load_renderer

        torch.set_num_threads(spec.threads)
        return load_renderer(
            folder,
            dtype=spec.facts.dtype,
            device=spec.device,
            rows=spec.rows,
            loras=loras,
            compiled=spec.compiled,
            call=spec.call,
            precision=spec.precision,
        )

    async def __call__(self, block: pa.Table) -> pa.Table:
        if self._broken is not None:
            raise self._broken
        return pa.concat_tables(await asyncio.gather(*(self._render(shard) for shard in unpack(block))))

    async def _render(self, shard: pa.Table) -> pa.Table:
        """The outcomes of a shard; a row that says so when the launch stops before it is begun."""
        if self._leaving:
            await _for_ever()
        if self._stopping:
            return self._teller.stopped(self._worked())
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
            self._told += rows.num_rows
        except DarkroomError as error:
            self._log.broken(str(error), name)
            raise
        finally:
            self._in_hand -= 1
        if self._leaving and not rows.num_rows:
            await _for_ever()
        self._note(name, rows, time.monotonic() - began)
        if self._board is not None:
            self._board.rendered.remote()
        return self._teller.told(rows, shard, self._worked())

    def _note(self, part_id: str, rows: pa.Table, seconds: float) -> None:
        self._metrics.shard(rows, seconds)
        failed = rows.num_rows - (pc.sum(pc.equal(rows["status"], "ok")).as_py() or 0)
        self._log.shard(part_id, images=rows.num_rows, failed=failed, seconds=seconds)

    def _worked(self) -> Worked:
        return Worked(engine=self._engine.counters, traffic=self._store.traffic)

    async def _attempt(self, shard: pa.Table, name: str) -> pa.Table:
        await asyncio.to_thread(self._attempts.begin, name)
        try:
            rows = await asyncio.wrap_future(self._runner.submit(shard))
        except DeviceHeldError as error:
            self._complain(str(error))
            if self._board is not None and await asyncio.to_thread(self._told_that, self._board.held):
                raise JobBrokenError(f"too many workers in a row had no memory, the last of them: {error}") from error
            await asyncio.to_thread(self._attempts.withdraw)
            die(f"other processes hold the device: {error}")
        except Exception as error:
            from pipeline.rendering.devices import device_error  # loads torch

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
        died = "ProcessDied: workers died with it among others, or their nodes, and then while it was rendered alone"
        part = self._open_part(single)
        part.put(Failed(task=task, stage="process", verdict="quarantined", error=died), datetime.now(UTC))
        return part.commit()

    def _tell_of_drawn(self, board: Any) -> None:
        """Tell what is drawn long before a shard is committed, so that people see it."""
        with suppress(ray.exceptions.RayError):  # the driver is gone, and Ray ends this process
            while True:
                drawn = Drawn(images=self._runner.drawn, engine=self._engine.counters)
                time.sleep(ray.get(board.drew.remote(self._process.process_id, drawn)))

    def _follow(self, board: Any) -> None:
        """Learn that the launch stops, or this node, and tell when nothing is in hand any more."""
        me = self._process
        with suppress(ray.exceptions.RayError):  # the driver is gone, and Ray ends this process
            why = ray.get(board.wait.remote(me.process_id, me.node_id))
            self._leaving = why == "leave"
            self._stopping = True
            self._runner.stop()
            while self._in_hand:
                time.sleep(0.05)
            ray.get(board.idle.remote(me.process_id, self._told))
            if self._leaving:
                time.sleep(FAREWELL_S)
                leave()


async def _for_ever() -> None:
    """A shard that was not begun here: when this process has left, Ray gives it to another."""
    await asyncio.Event().wait()


def nodes_with(resource: str) -> int:
    """The number of live nodes that have some of a resource of Ray's."""
    return sum(node["Alive"] and node["Resources"].get(resource, 0) > 0 for node in ray.nodes())


def node_gone(node_id: str) -> bool:
    """Whether a node is no longer part of the cluster, or about to leave it."""
    return node_id in draining_nodes() or not any(node["Alive"] and node["NodeID"] == node_id for node in ray.nodes())
