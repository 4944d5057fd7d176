"""The actor: a loaded model, an engine, a store; leases in, events out. No pixel leaves it but to the store."""

import gc
import os
import random
import socket
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import pyarrow as pa
import pyarrow.compute as pc
import ray

from pipeline.distributed.events import Begun, Broken, Committed, Ended, Event, GaveUp, Idle, Ready, Waiting, Working
from pipeline.distributed.journal import Journal
from pipeline.distributed.metrics import Metrics
from pipeline.distributed.outcomes import Teller, Worked
from pipeline.distributed.report import Drawn
from pipeline.distributed.runner import LeaseRunner
from pipeline.distributed.spec import WorkerSpec
from pipeline.distributed.watchdog import die, watch
from pipeline.distributed.worker_log import WorkerLog
from pipeline.errors import DarkroomError, DeviceHeldError, JobBrokenError, ModelError
from pipeline.model.fingerprint import DigestCache, fingerprint
from pipeline.model.resolve import in_this_home
from pipeline.output.part import PartWriter
from pipeline.recipe import RenderTask
from pipeline.rendering.judge import load_judge
from pipeline.storage.location import open_store

if TYPE_CHECKING:
    from pipeline.rendering.device_memory import Patience
    from pipeline.rendering.renderer import Renderer

FIRST_PAUSE_S = 5.0
"""Before the model is asked for once more; each further pause is twice as long."""
_Loras = Sequence[tuple[Path, float]]
_Loaded = TypeVar("_Loaded")


class _GivesUpError(Exception):
    """This worker ends, and no task is to blame."""

    def __init__(self, event: GaveUp) -> None:
        super().__init__(str(event.error))
        self.event = event


class RenderWorker:
    """Loads the model once and renders the leases it is given. Calls come in several threads, none blocks for long.

    What happens is told by ``events``, which the driver asks again and again.
    """

    def __init__(self, spec: WorkerSpec) -> None:
        node_id, process_id = ray.get_runtime_context().get_node_id(), uuid.uuid4().hex
        self._changed = threading.Condition()
        self._events: list[Event] = []
        """Those that the driver has not received, as far as it has said."""
        self._received = 0
        self._leases: dict[int, Future[pa.Table]] = {}
        self._working_told_s = 0.0
        name = f"{socket.gethostname()}:{os.getpid()}"
        self._teller = Teller(worker=name, model_load=process_id)
        self._tags = {"launch": spec.launch_id, "node": node_id, "worker": name}
        self._log = WorkerLog({"job": ray.get_runtime_context().get_job_id(), **self._tags})
        self._journal = Journal(Path(tempfile.mkdtemp(prefix="darkroom-")) / "journal")
        self._runner: LeaseRunner | None = None
        self._tell(Begun(node_id=node_id, process_id=process_id, journal=str(self._journal.path)))
        threading.Thread(target=self._begin, args=(spec,), name="load", daemon=True).start()

    def events(self, wait_s: float, received: int) -> list[Event]:
        """Return what has happened and the driver has not received; wait for it, but no longer than this.

        ``received``: how many events have arrived so far. An answer that was lost on its way is given once more.
        """
        with self._changed:
            del self._events[: received - self._received]
            self._received = received
            self._changed.wait_for(lambda: self._events, wait_s)
            now = time.monotonic()
            if self._runner is not None and now - self._working_told_s >= wait_s:
                self._working_told_s = now
                self._events.append(Working(Drawn(images=self._runner.drawn, engine=self._engine.counters)))
            return list(self._events)

    def lease(self, number: int, tasks: pa.Table) -> None:
        """Render and commit planned tasks of one batch key. ``Committed`` tells of each part, ``Ended`` of the end."""
        assert self._runner is not None
        began = time.monotonic()

        def committed(rows: pa.Table) -> None:
            self._note(rows, time.monotonic() - began)
            self._tell(Committed(number, self._teller.told(rows, tasks, self._worked())))

        done = self._runner.submit(tasks, committed)
        self._leases[number] = done
        done.add_done_callback(partial(self._ended, number))

    def take_back(self, number: int) -> None:
        """Give up a lease that is not begun; nothing happens to one that is."""
        done = self._leases.get(number)
        if done is not None and self._runner is not None:
            self._runner.take_back(done)

    def stop(self) -> None:
        """Begin no further task; ``Idle`` tells when nothing is in hand any more."""
        if self._runner is not None:
            self._runner.stop()
        threading.Thread(target=self._tell_when_idle, name="stop", daemon=True).start()

    def close(self) -> None:
        """Leave nothing behind on this machine."""
        self._journal.remove()

    def _tell_when_idle(self) -> None:
        while self._leases:
            time.sleep(0.05)
        self._tell(Idle())

    def _tell(self, event: Event) -> None:
        with self._changed:
            self._events.append(event)
            self._changed.notify_all()

    def _begin(self, spec: WorkerSpec) -> None:
        began = time.monotonic()
        gc.disable()  # a fifth of the time of imports and loading, which make next to no garbage
        try:
            self._load(spec)
        except _GivesUpError as ends:
            self._tell(ends.event)
        except DarkroomError as error:
            self._log.broken(str(error))
            self._tell(Broken(error))
        except BaseException as error:  # noqa: BLE001  # whatever it is belongs to the driver
            self._log.broken(f"{type(error).__name__}: {error}")
            self._tell(Broken(JobBrokenError(f"a worker failed: {type(error).__name__}: {error}")))
        else:
            self._log.ready(device=spec.device, rows=spec.rows.fixed or "auto", seconds=time.monotonic() - began)
            self._metrics = Metrics(self._tags, self._worked, lambda: len(self._leases))
            self._tell(Ready())
        finally:
            gc.freeze()
            gc.enable()

    def _load(self, spec: WorkerSpec) -> None:
        time.sleep(random.uniform(0.0, spec.start_within_s))
        folder, loras, found = self._find(spec)
        if found != spec.facts.model_fingerprint:
            raise ModelError("a worker found other model files than the driver", where=str(folder), value=found)
        self._engine = self._on_device(spec, folder, loras)
        self._store = store = open_store(spec.output_uri, spec.s3)

        def open_part(tasks: pa.Table) -> PartWriter:
            return PartWriter(store, tasks, spec.facts)

        on, drop = {"dtype": spec.facts.dtype, "device": spec.device}, spec.drop_flagged
        judge = self._patiently(spec, partial(load_judge, folder, checked=spec.model.checked, drop=drop, **on))
        self._runner = LeaseRunner(self._engine, open_part, judge, self._journal)
        watch(self._runner, spec.watchdog_s)

    def _find(self, spec: WorkerSpec) -> tuple[Path, _Loras, str]:
        """Return the model on this machine, and its fingerprint.

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
                    raise self._giving_up("start", error) from error
                self._complain(str(error))
            time.sleep(pause_s)
            pause_s *= 2

    def _files(self, spec: WorkerSpec) -> tuple[Path, _Loras, str]:
        folder, loras = spec.model.folder(), spec.model.lora_files()
        return folder, loras, fingerprint(folder, DigestCache(in_this_home(spec.cache_folder) / "digests"), loras)

    def _complain(self, reason: str) -> None:
        """Say in the log and to the driver what this worker waits for."""
        self._log.broken(reason)
        self._tell(Waiting(reason.splitlines()[0]))

    def _giving_up(self, why: Any, error: DarkroomError, *, only_node: bool = False) -> _GivesUpError:
        self._complain(str(error))
        return _GivesUpError(GaveUp(why, error, only_node))

    def _on_device(self, spec: WorkerSpec, folder: Path, loras: _Loras) -> "Renderer":
        return self._patiently(spec, partial(self._renderer, spec, folder, loras))

    def _patiently(self, spec: WorkerSpec, load: Callable[[], _Loaded]) -> _Loaded:
        """Load something; after pauses where other processes hold the memory of the device."""
        patience: Patience | None = None
        while True:
            try:
                return load()
            except (RuntimeError, MemoryError) as error:
                from pipeline.rendering.devices import device_error, out_of_memory  # loads torch

                if not device_error(error):
                    raise
                reason, full = f"{type(error).__name__}: {error}", out_of_memory(error)
            # Not in the handler, which would keep what the failed try has allocated.
            patience = patience or self._patience(spec.device)
            if not (full and patience.begin_pause()):
                if full and patience.held() is None:
                    no_room = ModelError(f"the model does not fit on {spec.device}: {reason}", where="model")
                    only_node = nodes_with("GPU" if spec.device == "cuda" else "CPU") <= 1
                    raise self._giving_up("room", no_room, only_node=only_node)
                raise self._giving_up("start", JobBrokenError(reason))
            self._complain(reason)
            while patience.doze():
                pass

    def _patience(self, device: str) -> "Patience":
        from pipeline.rendering.device_memory import Patience, read_memory  # loads torch

        return Patience(partial(read_memory, device))

    def _renderer(self, spec: WorkerSpec, folder: Path, loras: _Loras) -> "Renderer":
        """Return the loaded model."""
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
            on_begin=self._task_begins,
        )

    def _task_begins(self, task: RenderTask) -> None:
        self._journal.begin(bytes.fromhex(task.task_id))

    def _note(self, rows: pa.Table, seconds: float) -> None:
        self._metrics.shard(rows, seconds)
        failed = rows.num_rows - (pc.sum(pc.equal(rows["status"], "ok")).as_py() or 0)
        part = rows["part_id"][0].as_py()
        self._log.shard(part, images=rows.num_rows, failed=failed, seconds=seconds)

    def _worked(self) -> Worked:
        return Worked(engine=self._engine.counters, traffic=self._store.traffic)

    def _ended(self, number: int, done: "Future[pa.Table]") -> None:
        error = done.exception()
        if error is None:
            self._tell(Ended(number))
        elif isinstance(error, DeviceHeldError):
            self._tell(self._giving_up("held", error).event)
        else:
            self._broken(error)
        self._leases.pop(number, None)

    def _broken(self, error: BaseException) -> None:
        """End where the device broke; tell the driver of what no other worker would do better."""
        from pipeline.rendering.devices import device_error  # loads torch

        self._log.broken(str(error))
        if not isinstance(error, DarkroomError):
            if device_error(error):
                die(f"the device is of no use to this process any more: {type(error).__name__}: {error}")
            error = JobBrokenError(f"a worker failed: {type(error).__name__}: {error}")
        self._tell(Broken(error))


def nodes_with(resource: str) -> int:
    """Return the number of live nodes that have some of a resource of Ray's."""
    return sum(node["Alive"] and node["Resources"].get(resource, 0) > 0 for node in ray.nodes())
