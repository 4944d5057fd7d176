"""The Ray Data graph of one wave: from planned shards to outcome rows."""

import threading
from collections.abc import Generator

import pyarrow as pa
import ray
from ray.data import ActorPoolStrategy, DataContext
from ray.data._internal.execution.streaming_executor import StreamingExecutor

from pipeline.distributed.cluster import room
from pipeline.distributed.ray_errors import our_error
from pipeline.distributed.shards import ShardPlan, ShardSource
from pipeline.distributed.spec import Pool, WorkerSpec
from pipeline.distributed.worker import RenderWorker
from pipeline.identity import IdSet

ENDS_WITHIN_S = 30.0
GROW_FROM = 0.75
"""A pool that may grow does when its actors have so much of the two shards each that they take."""


def run_wave(
    plan: ShardPlan,
    images_per_row: int,
    committed: IdSet,
    spec: WorkerSpec,
    pool: Pool,
    worker: type[RenderWorker] = RenderWorker,
) -> Generator[pa.Table, None, None]:
    """Render what is planned and not committed; yields outcome tables (``OUTCOME_COLUMNS``) as shards are committed.

    Raises our own errors as the workers raised them, ``JobBrokenError`` for what Ray reports.
    """
    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.max_errored_blocks = 0
    context.raise_original_map_exception = True
    context.execution_no_progress_timeout_s = -1
    context.autoscaling_config.actor_pool_util_upscaling_threshold = GROW_FROM
    context.max_consecutive_actor_init_deaths = pool.most_failed_starts
    context.execution_options.preserve_order = False
    source = ShardSource(plan, images_per_row, ray.put(committed))
    reserved = {"num_gpus": pool.gpus} if pool.gpus else {"num_cpus": pool.cpus}
    outcomes = (
        ray.data.read_datasource(source)
        .repartition(target_num_rows_per_block=1)
        .map_batches(
            worker,
            fn_constructor_args=(spec,),
            batch_size=1,
            batch_format="pyarrow",
            # One shard runs while the next waits inside the same actor; Ray Data restarts dead actors without end.
            compute=ActorPoolStrategy(
                **_sizes(pool), max_tasks_in_flight_per_actor=2, max_concurrent_calls_per_actor=2
            ),
            **reserved,
        )
    )
    outcomes.set_name(spec.launch_id)
    try:
        # Prefetching would keep every table back until the next one is there.
        yield from outcomes.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0)
    except ray.exceptions.RayError as error:
        raise our_error(error) from error


def end_waves(launch_id: str) -> None:
    """End what Ray Data goes on with though nobody reads it any more, and give its workers back.

    Its thread would live on, and take this process along, with an exit code of its own, when Ray has ended.
    """
    for thread in threading.enumerate():
        if isinstance(thread, StreamingExecutor) and thread.name.startswith(f"StreamingExecutor-{launch_id}"):
            thread.shutdown(force=True)
            thread.join(ENDS_WITHIN_S)


def _sizes(pool: Pool) -> dict[str, int]:
    """A pool that may grow begins with all that there is room for: growing takes it many seconds for each actor."""
    if pool.least is None or pool.least >= pool.workers:
        return {"size": pool.workers}
    initial = min(max(pool.least, room(pool.gpus, pool.cpus)), pool.workers)
    return {"min_size": pool.least, "max_size": pool.workers, "initial_size": initial}
