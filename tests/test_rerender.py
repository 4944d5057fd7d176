"""``verify --rerender``: a real run of a tiny model, rendered again and compared; other pictures are found."""

import json
import sys
from dataclasses import replace
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest

from jobs import cli
from pipeline.distributed.rerender import Rerendered, rerender
from pipeline.errors import ModelError
from pipeline.identity import RunConstants
from pipeline.model.fingerprint import DigestCache, fingerprint
from pipeline.output.layout import Layout, Packing
from pipeline.output.part import PartWriter, RunFacts
from pipeline.output.pictures import read_image, sample_images
from pipeline.output.run import NumericsProfile, Run, read_run, write_run
from pipeline.prepare import library_versions
from pipeline.recipe import Recipe, RenderTask
from pipeline.rendering.determinism import ENGINE, SETTINGS
from pipeline.rendering.renderer import load_renderer
from pipeline.rendering.results import Rendered
from pipeline.storage.local import LocalStore
from tests import tiny_models
from tests.test_runner import shard_of

SEEDS = range(1, 6)
ROWS = 4


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.save(tiny_models.stable_diffusion(), tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def pictures(model: Path) -> list[Rendered]:
    shard = shard_of(*SEEDS).to_pylist()
    names = Recipe.__dataclass_fields__
    tasks = [
        RenderTask(task_id=row["task_id"].hex(), recipe=Recipe(**{name: row[name] for name in names})) for row in shard
    ]
    outcomes = list(load_renderer(model, dtype="float32", device="cpu", rows=ROWS).render(tasks))
    return [outcome for outcome in outcomes if isinstance(outcome, Rendered)]


@pytest.fixture
def store(tmp_path: Path, model: Path) -> LocalStore:
    """A run without images yet."""
    store = LocalStore(tmp_path / "run")
    constants = RunConstants(
        model_fingerprint=fingerprint(model, DigestCache(tmp_path / "cache")), dtype="float32", scheduler_config={}
    )
    numerics = NumericsProfile(
        rows=ROWS, compiled=False, threads=1, device="cpu", versions=library_versions(), engine=ENGINE, **SETTINGS
    )
    run = Run(
        model_id=str(model),
        model_revision=None,
        constants=constants,
        numerics=numerics,
        job={"model": {"loras": []}},
        created_at="",
        darkroom_version="0",
    )
    write_run(store, run)
    return store


def commit(store: LocalStore, pictures: list[Rendered], packing: Packing) -> None:
    run = read_run(store)
    assert run is not None
    write_run(store, replace(run, packing=packing))
    facts = RunFacts(model_id="m", model_fingerprint="f", dtype="float32", darkroom_version="0", packing=packing)
    writer = PartWriter(store, shard_of(*(picture.task.recipe.seed for picture in pictures)), facts)
    for picture in pictures:
        writer.put(picture, datetime(2026, 1, 1, tzinfo=UTC))
    writer.commit()


def again(store: LocalStore, number: int) -> Rerendered:
    return rerender(store, number, Path(store.uri).parent / "cache", lambda _: None)


def changed(picture: Rendered, by: int) -> Rendered:
    pixels = picture.pixels.copy()
    pixels[0, 0, 0] += by if pixels[0, 0, 0] + by < 256 else -by
    return replace(picture, pixels=pixels)


@pytest.mark.parametrize("layout", ["files", "webdataset", "parquet"])
def test_the_same_pixels_from_every_layout(store: LocalStore, pictures: list[Rendered], layout: Layout) -> None:
    commit(store, pictures[:2], Packing(layout=layout))
    commit(store, [changed(pictures[2], 9), *pictures[3:]], Packing(layout=layout))
    made = again(store, 100)
    assert (len(made.compared), made.equal, made.unexplained) == (5, 4, 1)
    assert [one.difference for one in made.compared if not one.equal] == [9]
    rows = sample_images(store, 100, 0)
    assert all(sha256(read_image(store, row["file_name"])).hexdigest() == row["file_sha256"] for row in rows)


def test_a_sample_is_spread_seeded_and_of_distinct_images(store: LocalStore, pictures: list[Rendered]) -> None:
    commit(store, pictures, Packing())
    commit(store, pictures[:3], Packing())
    samples = [[row["task_id"] for row in sample_images(store, 3, seed)] for seed in (0, 0, 1, 2, 3)]
    assert samples[0] == samples[1]
    assert len({tuple(sample) for sample in samples}) > 1
    assert all(len(set(sample)) == 3 for sample in samples)


def test_lossy_files_are_compared_as_files(store: LocalStore, pictures: list[Rendered]) -> None:
    packing = Packing(format="jpeg", jpeg_quality=90)
    commit(store, [replace(changed(pictures[0], 40), rows=8), *pictures[1:]], packing)
    made = again(store, 5)
    (other,) = (one for one in made.compared if not one.equal)
    assert 0 < (other.difference or 0) <= 80
    assert not other.made_alike
    assert made.unexplained == 0, "it was made with other rows"


def test_images_that_cannot_be_compared_say_why(store: LocalStore, pictures: list[Rendered]) -> None:
    gone, cut, small = (changed(picture, 5) for picture in pictures[:3])
    small = replace(small, pixels=np.ascontiguousarray(small.pixels[:16]))
    commit(store, [gone, cut, small], Packing())
    rows = {row["task_id"]: row["file_name"] for row in sample_images(store, 3, 0)}
    store.delete(rows[gone.task.task_id])
    store.put(rows[cut.task.task_id], store.get(rows[cut.task.task_id])[:60])
    errors = {one.task_id: one.error or "" for one in again(store, 3).compared}
    assert "no object" in errors[gone.task.task_id]
    assert "reading the stored image" in errors[cut.task.task_id]
    assert "shape" in errors[small.task.task_id]


def test_another_model_is_refused(store: LocalStore, pictures: list[Rendered]) -> None:
    commit(store, pictures, Packing())
    run = read_run(store)
    assert run is not None
    write_run(store, replace(run, constants=replace(run.constants, model_fingerprint="0" * 32)))
    with pytest.raises(ModelError, match="not those of the run"):
        again(store, 1)


def test_the_command(
    store: LocalStore, pictures: list[Rendered], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(Path(store.uri).parent))
    commit(store, [changed(pictures[0], 3), *pictures[1:]], Packing())

    def run(*words: str) -> int:
        monkeypatch.setattr(sys, "argv", ["darkroom", "verify", store.uri, "--rerender", "9", *words])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return int(str(ended.value.code))

    assert run() == 1
    said = capsys.readouterr().out
    assert "rendered   5 images again on cpu\n" in said
    assert "equal      4, every pixel" in said
    assert "different  1, by at most 3/255" in said
    assert run("--json") == 1
    facts = json.loads(capsys.readouterr().out)
    assert (facts["equal"], facts["unexplained"], len(facts["compared"])) == (4, 1, 5)
