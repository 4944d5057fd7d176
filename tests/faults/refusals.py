"""What is tried beside models: paths, tags, credentials in addresses, sizes, and models that are not the run's."""

import io
import json
import os
import re
import shutil
import tarfile
from collections.abc import Callable, Iterable, Mapping
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import get_args
from unittest.mock import patch

import diffusers
import huggingface_hub
import pyarrow as pa
import transformers

from jobs.cli import main
from pipeline.config import load_job
from pipeline.distributed.launch import LaunchOptions, launch
from pipeline.distributed.spec import WorkerSpec
from pipeline.distributed.worker import RenderWorker
from pipeline.errors import InputError, ModelError, RunMismatchError, StoreDeniedError
from pipeline.model.family import FAMILIES
from pipeline.model.resolve import BUILT_IN, LoraSource, ModelSource
from pipeline.model.rows import BatchRows
from pipeline.output.index import part_keys
from pipeline.output.layout import Layout
from pipeline.output.part import RunFacts, put_part, read_part
from pipeline.output.verify import verify
from pipeline.prepare import prepare
from pipeline.rendering.loading import load_model
from pipeline.storage.local import LocalStore
from pipeline.storage.location import open_store
from pipeline.storage.s3_settings import S3Settings
from tests.faults.trials import TODAY, write_table
from tests.faults.without_ray import Painter, launch_here, plan_of

Check = Callable[[Path], str | None]
"""Tries something in an empty folder; returns how it was not refused, None when all is well."""

SECRET = "wordthatmustnotbeseen"
_ADDRESSES = (
    f"s3://key:{SECRET}@bucket/x", f"s3://{SECRET}@bucket/x", f"s3://key:a/{SECRET}@bucket/x",
    f"S3://key:{SECRET}@bucket", f"http://key:{SECRET}@host:9000", f"https://key:{SECRET}@host/m.parquet",
    f"gs://key:{SECRET}@bucket/x", f"file://key:{SECRET}@host/x", f"https://host/m.parquet?X-Amz-Signature={SECRET}",
    f"http://key:{SECRET}@[::1/x",
)  # fmt: skip
_GIVEN: Mapping[str, Callable[[str], list[str]]] = {
    "manifest": lambda url: ["plan", "--manifest", url],
    "pattern": lambda url: ["plan", "--manifest", f"{url}/*.parquet"],
    "output of plan": lambda url: ["plan", "--manifest", "m.parquet", "-o", url],
    "output of render": lambda url: ["render", "--manifest", "m.parquet", "-o", url, "--address", "nowhere"],
    "model": lambda url: ["plan", "--manifest", "m.parquet", "--model", url],
    "endpoint": lambda url: [
        "plan",
        "--manifest",
        "m.parquet",
        "--set",
        f"s3.endpoint_url={url}?a",
        "-o",
        "s3://bucket/x",
    ],
    "another key": lambda url: ["plan", "--manifest", "m.parquet", "--set", f"output={url}"],
    "job file": lambda url: ["plan", url],
    "status": lambda url: ["status", url],
    "verify": lambda url: ["verify", url],
    "endpoint of status": lambda url: ["status", "s3://bucket/x", "--endpoint-url", f"{url}?a"],
    "source": lambda url: ["manifest", "build", url, "out.parquet"],
}
_TAGS = (
    "!!python/object/apply:pathlib.Path.touch [ran]", "!!python/object/new:subprocess.Popen [[touch, ran]]",
    "!!python/object/apply:os.system ['touch ran']", "!!python/name:os.system", "!!python/module:os",
    "!!python/tuple [1]", "!!python/object:pipeline.config.Job {}", "!touch ran",
)  # fmt: skip
_OUTPUTS = (
    "s3://bucket/../x", "s3://bucket/a/../../x", "s3://bucket/a//x", "s3://bucket/./x", "s3://../x", "s3://bucket/a\0b",
    "s3://bucket/\n", "file://host/x", "gs://bucket/x", "\0",
)  # fmt: skip
_TRICKS = ("../../outside", "/tmp/outside", "a/../../b", "..", "C:\\outside", "~/outside", "outside\n", "-rf")
_SAFE_NAME = re.compile(r"(_darkroom/)?([a-z]+/)?([0-9a-f]{2}/)?[A-Za-z0-9-]+\.[a-z]+")
_OUTSIDE = ("../../outside", "/etc/passwd", "images/../../outside", "shards/../../outside/x", "a\0b")


def _said(words: Iterable[str], environment: Mapping[str, str] | None = None) -> tuple[object, str]:
    """The exit code of the command in this process, and all that it printed."""
    printed = io.StringIO()
    with (
        patch("sys.argv", ["darkroom", "--debug", *words]),
        patch.dict(os.environ, {"HF_HUB_OFFLINE": "1", **(environment or {})}),
        redirect_stdout(printed),
        redirect_stderr(printed),
    ):
        try:
            main()
        except SystemExit as end:
            return end.code, printed.getvalue()
    return None, printed.getvalue()


def _address(given: str, url: str, folder: Path) -> str | None:
    write_table(folder / "m.parquet", pa.table({"prompt": ["a"]}))
    return _kept_quiet(*_said(_GIVEN[given](url)))


def _endpoint_of_the_environment(_: Path) -> str | None:
    return _kept_quiet(*_said(["status", "s3://bucket/x"], {"AWS_ENDPOINT_URL": f"http://key:{SECRET}@host"}))


def _kept_quiet(code: object, said: str) -> str | None:
    if SECRET in said:
        return f"it was printed: {said[-200:]}"
    return None if code == 2 else f"exit code {code}: {said[-200:]}"


def _tag(text: str, folder: Path) -> str | None:
    """In a job file, and in a setting."""
    (folder / "job.yaml").write_text(f"manifest: m.parquet\nsweep:\n  seeds: {text}\n")
    for words in (["plan", "job.yaml"], ["plan", "--manifest", "m.parquet", "--set", f"sweep.seeds={text}"]):
        code, said = _said(words)
        if code != 2 or (folder / "ran").exists():
            return f"exit code {code}: {said[-200:]}"
    return None


def _output(uri: str, _: Path) -> str | None:
    try:
        open_store(uri)
    except InputError:
        return None
    return "it was opened"


def _names(layout: Layout, folder: Path) -> str | None:
    """Names in a manifest that are paths: what is written lies in the output, and nothing is named by them."""
    plan = plan_of(folder, ["a"], layout, "0")
    names = {name: [*_TRICKS] for name in ("prompt", "prompt_id", "../outside", "/outside")}
    write_table(folder / "m.parquet", pa.table(names))
    before = {*folder.rglob("*")}
    store = LocalStore(folder / "a" / "out")
    launch_here(store, replace(plan, prepared=prepare(plan.prepared.job)), Painter())
    outside = [path for path in {*folder.rglob("*")} - before if not path.is_relative_to(folder / "a")]
    written = [info.key for info in store.list()]
    for key in (key for key in tuple(written) if key.endswith(".tar")):
        with tarfile.open(fileobj=io.BytesIO(store.get(key))) as tar:
            written += tar.getnames()
    named = [name for name in written if not _SAFE_NAME.fullmatch(name)]
    return f"written: {outside or named}" if outside or named else None


def _link(use: Callable[[LocalStore], object], folder: Path) -> str | None:
    """Links in an output, to a file and to a folder beside it."""
    (folder / "beside").mkdir()
    (folder / "beside" / "file").write_text("kept")
    (folder / "out").mkdir()
    (folder / "out" / "link").symlink_to(folder / "beside")
    (folder / "out" / "file").symlink_to(folder / "beside" / "file")
    try:
        use(LocalStore(folder / "out"))
    except StoreDeniedError:
        return None if (folder / "beside" / "file").read_text() == "kept" else "it was written"
    return "nothing was said"


_USES: Mapping[str, Callable[[LocalStore], object]] = {
    "put": lambda store: store.put("link/file", b"x"),
    "put in place of a link": lambda store: store.put("file", b"x"),
    "put_file": lambda store: store.put_file("link/new", io.BytesIO(b"x")),
    "get": lambda store: store.get("link/file"),
    "get of a link": lambda store: store.get("file"),
    "get_range": lambda store: store.get_range("link/file", 0, 1),
    "head": lambda store: store.head("link/file"),
    "open": lambda store: store.open("link/file"),
    "delete": lambda store: store.delete("link/file"),
    "list": lambda store: list(store.list()),
}


def _hostile_part(name: str, folder: Path) -> str | None:
    """A part with the right digest that names its images elsewhere: ``verify`` calls it corrupt and reads nothing."""
    store = LocalStore(folder / "a" / "out")
    launch_here(store, plan_of(folder, ["a"], "files", "0"), Painter())
    (key,) = part_keys(store)
    part = read_part(store, key)
    at = part.column_names.index("file_name")
    store.delete(key)
    put_part(store, part["part_id"][0].as_py(), part.set_column(at, part.schema.field(at), pa.array([name])))
    (found,) = part_keys(store)
    wrong = {fault.key: fault.what for fault in verify(store).faults}
    return None if wrong.get(found) == "corrupt" else f"verify says {wrong}"


def _size(
    folder: Path, *, cells: Mapping[str, int], settings: Mapping[str, object], model: int | None = None
) -> str | None:
    """Pictures of absurd size, asked for by a job, a manifest or a model."""
    shutil.copytree(BUILT_IN["shapes"], folder / "model")
    config = folder / "model" / "unet" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | ({"sample_size": model} if model else {})))
    write_table(folder / "m.parquet", pa.table({"prompt": ["a"], **{name: [cell] for name, cell in cells.items()}}))
    try:
        prepare(load_job(None, {"manifest": "m.parquet", "model.id": "model", **settings}.items(), TODAY))
    except InputError:
        return None
    return "it was planned"


def _other_weights(folder: Path) -> str | None:
    """An output bound to a model whose weights are others now."""
    model = Path(shutil.copytree(BUILT_IN["shapes"], folder / "model"))
    plan = plan_of(folder, ["a"], "files", "0", str(model))
    launch_here(LocalStore(folder / "out"), plan, Painter())
    weights = model / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    job = plan.prepared.job.model_copy(update={"output": plan.prepared.job.output.model_copy(update={"uri": "out"})})
    try:
        launch(prepare(job), LaunchOptions(address="nowhere", cache_folder=folder), lambda _: None, lambda _: None)
    except RunMismatchError as error:
        return None if "model_fingerprint" in str(error) else str(error)
    return "it was rendered"


def _other_files_on_a_worker(folder: Path) -> str | None:
    facts = RunFacts(model_id="shapes", model_fingerprint="0" * 32, dtype="float32", darkroom_version="0")
    spec = WorkerSpec(
        model=ModelSource(model_id="shapes"), facts=facts, output_uri=str(folder), s3=S3Settings(), device="cpu",
        rows=BatchRows(fixed=4, family=FAMILIES["StableDiffusionPipeline"], dtype="float32", device_bytes=None),
        compiled=False, call={}, threads=1, cache_folder=folder, launch_id="x", watchdog_s=900.0,
    )  # fmt: skip
    try:
        object.__new__(RenderWorker)._load(spec)
    except ModelError as error:
        return None if "other model files" in str(error) else str(error)
    return "it was loaded"


def _calls(_: Path) -> str | None:
    """How the libraries are asked to load: only safetensors, only from here, and no connection is made."""
    asked = {}
    classes = (diffusers.StableDiffusionPipeline, diffusers.UNet2DConditionModel, transformers.CLIPTextModel)
    for kind in classes:
        with (
            patch.object(kind, "from_pretrained", wraps=kind.from_pretrained) as call,
            patch("socket.socket.connect", side_effect=AssertionError("a connection")),
        ):
            load_model(BUILT_IN["shapes"], dtype="float32", device="cpu")
        asked[kind.__name__] = call.call_args.kwargs
    wanted = {"use_safetensors": True, "local_files_only": True}
    wrong = [
        name for name, told in asked.items() if not wanted.items() <= told.items() or told.get("trust_remote_code")
    ]
    return f"asked otherwise: {wrong}" if wrong else None


def _hub(_: Path) -> str | None:
    """Driver and workers name commits, whatever a branch says meanwhile."""
    asked: list[str | None] = []

    def snapshot(name: str, revision: str | None = None, **_: object) -> str:
        asked.append(revision)
        folder = Path(name, revision if revision and len(revision) == 40 else f"{len(asked):040}")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "model_index.json").write_text("{}")
        return str(folder)

    def file(name: str, path: str, revision: str | None = None) -> str:
        return f"{snapshot(f'hub/{name}', revision)}/{path}"

    with (
        patch.object(huggingface_hub, "snapshot_download", lambda name, **more: snapshot(f"hub/{name}", **more)),
        patch.object(huggingface_hub, "hf_hub_download", file),
        patch.object(huggingface_hub, "list_repo_files", lambda *_, **__: ["style.safetensors"]),
    ):
        lora = LoraSource(lora_id="org/lora")
        pinned = ModelSource(model_id="org/model", revision="main", loras=(lora,)).pinned()
        asked.clear()
        pinned.folder()
        pinned.loras[0].pinned()
    return None if asked and all(revision and len(revision) == 40 for revision in asked) else f"asked for {asked}"


PATHS: Mapping[str, Check] = {
    **{f"output {uri!r}": partial(_output, uri) for uri in _OUTPUTS},
    **{f"names that are paths, layout {layout}": partial(_names, layout) for layout in get_args(Layout)},
    **{f"{name} through a link": partial(_link, use) for name, use in _USES.items()},
    **{f"a part that names {name!r}": partial(_hostile_part, name) for name in _OUTSIDE},
}
TAGS: Mapping[str, Check] = {text: partial(_tag, text) for text in _TAGS}
CREDENTIALS: Mapping[str, Check] = {
    **{f"{url} as {given}": partial(_address, given, url) for given, url in product(_GIVEN, _ADDRESSES)},
    "an endpoint of the environment": _endpoint_of_the_environment,
}
SIZES: Mapping[str, Check] = {
    "sweep of 10^6 px": partial(_size, cells={}, settings={"sweep.sizes": "1000000x1000000"}),
    "sweep of 8196 px": partial(_size, cells={}, settings={"sweep.sizes": [[8196, 96]]}),
    "manifest of 10^6 px": partial(_size, cells={"width": 10**6, "height": 10**6}, settings={}),
    "manifest of 2^62 px": partial(_size, cells={"width": 96, "height": 2**62}, settings={}),
    "model of 10^6 px": partial(_size, cells={}, settings={}, model=250_000),
    "model beyond numbers": partial(_size, cells={}, settings={}, model=10**400),
}
BINDING: Mapping[str, Check] = {
    "another model than the run's": _other_weights,
    "other files on a worker": _other_files_on_a_worker,
    "how the libraries are called": _calls,
    "commits of the Hub": _hub,
}
