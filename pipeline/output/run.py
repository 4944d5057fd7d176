"""``run.json``: what an output location is bound to. Written by its first launch, obeyed by every later one.

A later one may change the license alone, which no picture depends on.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from pipeline.errors import ObjectMissingError, RunMismatchError
from pipeline.identity import RunConstants
from pipeline.model.family import Family
from pipeline.model.rows import BatchRows
from pipeline.output.layout import PNG_FILES, RUN_KEY, Packing
from pipeline.storage.base import ObjectStore
from pipeline.strict_json import dumps, loads, strict

RUN_FILE_VERSION = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class NumericsProfile:
    """What may change the last bits of a picture without being another picture; kept over all launches of a run."""

    rows: int | Literal["auto"]
    """Of the denoiser's batch."""
    compiled: bool
    """Whether the denoiser is compiled."""
    threads: int
    """CPU threads per worker."""
    device: str
    """``cpu`` or a GPU's name."""
    versions: Mapping[str, str]
    """Of the libraries that compute."""
    device_bytes: int | None = None
    """Memory of the GPU that ``auto`` rows are reckoned for, by every launch alike."""
    engine: int = 1
    """The version of the engine's arithmetic (``rendering/determinism.py``), 1 for a run that names none. The fields
    below are settings of torch; their defaults are what they were then."""
    matmul_tf32: bool = False
    cudnn_tf32: bool = True
    cudnn_benchmark: bool = False
    cublas_workspace: str | None = None
    allocator: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """The content of ``run.json``."""

    model_id: str
    model_revision: str | None
    constants: RunConstants
    numerics: NumericsProfile
    job: Mapping[str, Any]
    """The resolved job of the first launch."""
    created_at: str
    darkroom_version: str
    packing: Packing = PNG_FILES
    license: str | None = None
    """Of the images as a data set: the last one that a launch named, by its id at the Hugging Face Hub."""

    def batch_rows(self, family: Family) -> BatchRows:
        """Return the rows of the denoiser's batch by image size, for a model of ``family``."""
        numerics, dtype = self.numerics, self.constants.dtype
        fixed = None if numerics.rows == "auto" else numerics.rows
        return BatchRows(fixed=fixed, family=family, dtype=dtype, device_bytes=numerics.device_bytes)


def read_run(store: ObjectStore) -> Run | None:
    """The run at a location, None where there is none yet."""
    where = f"{store.uri}/{RUN_KEY}"
    try:
        read = loads(store.get(RUN_KEY))
        if read.pop("version", None) != RUN_FILE_VERSION:
            raise RunMismatchError("the run was written by another version of Darkroom", where=where)
        read["constants"] = RunConstants(**read["constants"])
        read["numerics"] = NumericsProfile(**read["numerics"])
        read["packing"] = Packing(**read.get("packing", {}))
        return Run(**read)
    except ObjectMissingError:
        return None
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise RunMismatchError(f"the run file cannot be read: {error}", where=where) from None


def write_run(store: ObjectStore, run: Run) -> None:
    store.put(RUN_KEY, dumps({"version": RUN_FILE_VERSION, **asdict(run)}, indent=1).encode())


def note_license(store: ObjectStore, license_id: str | None) -> None:
    """Keep the license that a later launch names, for the dataset card; one that names none changes nothing."""
    run = read_run(store) if license_id is not None else None
    if run is not None and run.license != license_id:
        write_run(store, replace(run, license=license_id))


def check_same_pixels(run: Run, wanted: RunConstants, where: str) -> None:
    """Refuse to mix pictures: ``RunMismatchError`` says which settings differ, with both values."""
    _check_same(asdict(run.constants), asdict(wanted), where)


def check_same_packing(run: Run, wanted: Packing, where: str) -> None:
    """Refuse to keep some images otherwise than the rest, in the same words.

    A run that began before files had a provenance takes any setting, and goes on without. One that began before columns
    were kept in readable types goes on with those it has.
    """
    if run.packing.provenance is None:
        wanted = replace(wanted, provenance=None)
    if run.packing.columns is None:
        wanted = replace(wanted, columns=None)
    _check_same({"output": asdict(run.packing)}, {"output": asdict(wanted)}, where)


def _check_same(ours: Mapping[str, Any], theirs: Mapping[str, Any], where: str) -> None:
    differences = [f"{name}: the run has {left!r}, this job {right!r}" for name, left, right in _compared(ours, theirs)]
    if differences:
        raise RunMismatchError(
            "this output holds a run made with other settings: " + "; ".join(differences),
            where=where,
            allowed="the run's own settings, or another output.uri",
        )


def _compared(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    found: list[tuple[str, Any, Any]] = []
    for name in sorted(ours.keys() | theirs.keys()):
        left, right = ours.get(name), theirs.get(name)
        if isinstance(left, Mapping) and isinstance(right, Mapping):
            found += [(f"{name}.{inner}", a, b) for inner, a, b in _compared(left, right)]
        elif strict(left) != strict(right):  # NaN is equal to itself here
            found.append((name, left, right))
    return found


_SET_BY_ENGINE = ("engine", "matmul_tf32", "cudnn_tf32", "cudnn_benchmark", "cublas_workspace", "allocator")


def numerics_warnings(run: Run, now: NumericsProfile) -> list[str]:
    """Return what is different about this launch in ways that may change last bits, a sentence each.

    Another engine brings other settings of torch along: one sentence for all.
    """
    ours, theirs = asdict(run.numerics), asdict(now)
    found = []
    if run.numerics.engine != now.engine:
        ours, theirs = ({k: v for k, v in of.items() if k not in _SET_BY_ENGINE} for of in (ours, theirs))
        found.append(
            f"this run began with version {run.numerics.engine} of the engine and goes on with version {now.engine}; "
            "last bits of new images may differ; `darkroom verify --rerender` measures by how much"
        )
    return found + [
        f"{name} was {left!r} when the run began and is {right!r} now; last bits of new images may differ"
        for name, left, right in _compared(ours, theirs)
    ]
