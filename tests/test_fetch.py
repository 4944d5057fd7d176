"""Models in object storage: fetched once for each version, whole, by whoever comes first."""

import multiprocessing
import os
import shutil
import time
from pathlib import Path

import pytest

from pipeline.errors import ModelError
from pipeline.model.fetch import fetched
from pipeline.model.files import read_json
from pipeline.model.fingerprint import DigestCache, fingerprint
from pipeline.model.resolve import BUILT_IN, ModelSource
from pipeline.storage.local import LocalStore
from pipeline.storage.location import open_store
from pipeline.storage.s3_settings import S3Settings

FILES = {
    "model_index.json": b"{}",
    "unet/config.json": b"[1]",
    "unet/w.safetensors": b"w",
    "unet/w.fp16.safetensors": b"",
}


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    store = LocalStore(tmp_path / "store")
    for key, body in FILES.items():
        store.put(key, body)
    return store


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def fetch_model(store: LocalStore, cache: Path) -> Path:
    return fetched(store, lambda keys: [key for key in keys if "fp16" not in key], cache)


def test_what_is_wanted_comes_once(store: LocalStore, tmp_path: Path) -> None:
    folder = fetch_model(store, tmp_path / "cache")
    assert files(folder) == {key: body for key, body in FILES.items() if "fp16" not in key}
    read = store.traffic.bytes_got
    assert fetch_model(store, tmp_path / "cache") == folder
    assert store.traffic.bytes_got == read


def test_another_version_is_another_folder(store: LocalStore, tmp_path: Path) -> None:
    folder = fetch_model(store, tmp_path / "cache")
    time.sleep(0.01)
    store.put("unet/w.safetensors", b"x")
    changed = fetch_model(store, tmp_path / "cache")
    assert (files(folder)["unet/w.safetensors"], files(changed)["unet/w.safetensors"]) == (b"w", b"x")


def test_what_broke_off_is_not_a_model(store: LocalStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, cache = shutil.copyfileobj, tmp_path / "cache"
    monkeypatch.setattr(shutil, "copyfileobj", lambda source, file, _: file.write(source.read()[:-1]))
    with pytest.raises(ModelError, match="changed while it was fetched"):
        fetch_model(store, cache)
    assert not [path for path in cache.iterdir() if path.is_dir()]
    monkeypatch.setattr(shutil, "copyfileobj", whole)
    assert "unet/w.safetensors" in files(fetch_model(store, cache))


def test_what_killed_processes_left_is_swept(store: LocalStore, tmp_path: Path) -> None:
    folder, cache = fetch_model(store, tmp_path / "cache"), tmp_path / "cache"
    others = cache / f"{'0' * 32}-01234567.part"
    others.mkdir()
    shutil.rmtree(folder)
    (folder.with_name(f"{folder.name}-01234567.part") / "unet").mkdir(parents=True)
    fetch_model(store, cache)
    assert sorted(path for path in cache.iterdir() if path.is_dir()) == sorted([folder, others])


def test_a_cache_that_cannot_be_written_is_told_about(store: LocalStore, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ModelError, match=r"(?s)cannot be kept in the cache.*XDG_CACHE_HOME"):
        fetch_model(store, tmp_path / "file" / "cache")


def _fetch_in_process(root: str, cache: str, out: str) -> None:
    folder = fetch_model(LocalStore(Path(root)), Path(cache))
    Path(out, str(os.getpid())).write_text(f"{folder} {folder.stat().st_ino}")


def test_processes_of_one_machine_fetch_it_once(store: LocalStore, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    store.put("unet/large.safetensors", b"\0" * 30_000_000)
    context = multiprocessing.get_context("spawn")
    words = (store.uri, str(tmp_path / "cache"), str(tmp_path / "out"))
    processes = [context.Process(target=_fetch_in_process, args=words) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    told = [path.read_text() for path in (tmp_path / "out").iterdir()]
    assert len(told) == 3
    assert len(set(told)) == 1


def test_a_model_on_a_server_is_the_same_model(
    s3_bucket: str, s3_settings: S3Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    uri, here = f"s3://{s3_bucket}/models/shapes", BUILT_IN["shapes"]
    store = open_store(uri, s3_settings)
    for path in here.rglob("*"):
        if path.is_file():
            store.put(path.relative_to(here).as_posix(), path.read_bytes())
    source = ModelSource(model_id=uri, s3=s3_settings, cache_folder=tmp_path / "cache")
    facts = source.folder(weights=False)
    assert read_json(facts / "model_index.json") == read_json(here / "model_index.json")
    assert not list(facts.rglob("*.safetensors"))
    digests = DigestCache(tmp_path / "digests")
    pinned = source.pinned()
    assert pinned.cache_folder == Path("~/cache"), "workers may have another home"
    assert pinned.folder().is_relative_to(tmp_path / "cache")
    assert fingerprint(pinned.folder(), digests) == fingerprint(here, digests)
    plain, variant = ("unet/diffusion_pytorch_model" + suffix for suffix in (".safetensors", ".fp16.safetensors"))
    store.put(variant, (here / plain).read_bytes())
    assert not (source.folder() / variant).exists()
    store.delete(plain)
    assert (source.folder() / variant).exists()
    with pytest.raises(ModelError, match="no model in diffusers format: it has no files"):
        ModelSource(model_id=f"{uri}/nothing", s3=s3_settings, cache_folder=tmp_path / "cache").folder()
    with pytest.raises(ModelError, match="only models of the Hub have revisions"):
        ModelSource(model_id=uri, revision="main", s3=s3_settings, cache_folder=tmp_path / "cache").folder()
