"""Job files, settings, outputs and models that cannot be used, each with a manifest that can."""

import json
import random
import shutil
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from pipeline.model.resolve import BUILT_IN
from tests.faults.trials import Make, Trial, Verdict, good_rows, settings, table_of, write_table

_JOB = """\
manifest: {manifest}
sweep:
  seeds: 0-1
  steps: [2, 3]
output:
  uri: {output}
"""

_LAUGHS = "x: &a [1,1,1,1,1,1,1,1,1]\n" + "".join(
    f"x{number}: &{name} [{','.join([f'*{above}'] * 9)}]\n"
    for number, (above, name) in enumerate(zip("abcdefgh", "bcdefghi", strict=True))
)

JOB_FILES: Mapping[str, tuple[str | bytes, ...]] = {
    "YAML that multiplies itself": (
        _LAUGHS, _LAUGHS + "sweep: {seeds: *i}\n", _LAUGHS + "model: {call: {x: *i}}\n", _LAUGHS + "model: *i\n",
    ),
    "unknown keys": (
        "manifst: x\n", "sweep: {seed: 1}\n", "output: {path: x}\n", "seeds: 1\n", "model: {idd: x}\n",
        "? [a, b]\n: 1\n", "1: 2\n", "null: 3\n", "? {a: b}\n: c\n", "render: {rows: 2, 3: 4}\n", "s3: {secret: x}\n",
        "🛑: 1\n",
    ),
    "values of another type": (
        "manifest: [a, b]\n", "manifest: 3\n", "sweep: 3\n", "sweep: {seeds: {a: b}}\n", "output: [x]\n",
        "model: [x]\n", "model: {loras: x}\n", "model: {loras: [{weight: 1}]}\n", "model: {call: [1]}\n",
        "workers: {count: -1}\n", "workers: {count: yes}\n", "render: {rows: 1}\n", "render: {stop_after: -3h}\n",
        "render: {watchdog: soon}\n", "manifest_columns: [x]\n", "manifest_columns: {a: b}\n",
        "output: {jpeg_quality: 101}\n", "s3: {region: 3}\n",
    ),
    "keys written twice": ("manifest: x\nmanifest: y\n", "sweep: {seeds: 1, seeds: 2}\n", "a: {b: {c: 1, c: 1}}\n"),
    "tabs and broken YAML": (
        "sweep:\n\tseeds: 1\n", "sweep: {seeds: 1\n", "a: b: c\n", "- a\nb: c\n", "'\n", "\"\\x\"\n", "%YAML 9\n",
        "a: *b\n", "@\n", "`\n", "a: |\nb\n", "--- a\n--- b\n", "{" * 2000, "[" * 100_000, "- " * 5000, "a: " * 1000,
    ),
    "anchors in a circle": (
        "sweep: &a {seeds: *a}\n", "manifest: &a [*a]\n", "model: &a {call: *a}\n", "x: &a [&b [*a, *b]]\n",
        "<<: &a {<<: *a}\n", "<<: [1]\n", "<<: 3\n", "sweep: &a {? *a : 1}\n",
    ),
    "binary": (
        b"\x89PNG\r\n\x1a\n", b"\0" * 100, b"PAR1", "manifest: x\n".encode("utf-16"), b"manifest: \xff\n",
        b"\xef\xbb\xbf\xef\xbb\xbf", b"manifest: \x07\n", b"manifest: a\0b\n",
        "manifest: \ud800\n".encode("utf-8", "surrogatepass"), b'manifest: "\\ud800"\n', b'manifest: "\\0"\n',
        b"\x1b[31m",
    ),
    "huge numbers": (
        f"sweep: {{seeds: {'9' * 5000}}}\n", f"sweep: {{steps: 1e{'9' * 30}}}\n", "sweep: {seeds: 0-99999999999}\n",
        "sweep: {seeds: '0-1e400'}\n", "sweep: {seeds: {random: 1000000000}}\n",
        "sweep: {sizes: 999999999x999999999}\n", "sweep: {guidance_scales: .inf}\n",
        "sweep: {guidance_scales: .nan}\n", "sweep: {seeds: 0x1" + "0" * 5000 + "}\n",
        "sweep: {guidance_scales: {start: 0, stop: 1, num: 99999999999}}\n", f"render: {{rows: {'8' * 4400}}}\n",
        "sweep: {seeds: {start: 0, stop: 1, step: 1e-300}}\n", f"{'7' * 5000}: 1\n", "workers: {gpus: .inf}\n",
        f"sweep: {{seeds: 1:{':59' * 2000}}}\n", "render: {watchdog: 999999h}\nsweep: {seeds: -1}\n",
        "sweep: {seeds: 18446744073709551616}\n",
    ),
    "dates and such in their place": (
        "manifest: 2026-01-02\n", "sweep: {seeds: 2026-01-02}\n", "sweep: {seeds: 2026-13-99}\n",
        "workers: {count: 2026-01-02}\n", "render: {stop_after: 2026-01-02 10:00:00}\n",
        "sweep: {steps: 12:30:45.5}\n", "render: {rows: 0o7}\n",
    ),
    "tags": (
        "manifest: !!python/object/apply:os.system [exit 1]\n", "manifest: !!python/name:os.system\n",
        "sweep: !x {seeds: 1}\n", "manifest: !!binary x\n", "manifest: !!set {a, b}\n", "sweep: {seeds: !!int x}\n",
        "sweep: {seeds: !!float ''}\n", "manifest: !!timestamp x\n", "sweep: !!omap [a: 1]\n",
        "sweep: {seeds: !!bool maybe}\n", "manifest: !!null x\n",
    ),
    "no mapping": (
        b"", b"\n", b"# nothing\n", b"3\n", b"x\n", b"[]\n", "- manifest: x\n", b"null\n", b"---\n...\n", b"{}\n",
    ),
}  # fmt: skip
"""Each makes a job file unusable: texts that follow good keys, bytes that are all of it."""


def _good_manifest(drawn: random.Random, folder: Path) -> int:
    """Returns its rows."""
    rows = good_rows(drawn)
    write_table(folder / "m" / "a.parquet", table_of(rows))
    return len(rows)


def _good_job(folder: Path) -> bytes:
    return _JOB.format(manifest=folder / "m", output=folder / "out").encode()


def _job_file(texts: tuple[str | bytes, ...], drawn: random.Random, folder: Path) -> Trial:
    """The bad text, after a good manifest where it is text and names none."""
    _good_manifest(drawn, folder)
    text = drawn.choice(texts)
    if isinstance(text, str):
        text = ("" if "manifest:" in text else f"manifest: {folder / 'm'}\n").encode() + text.encode()
    return _written(folder, text, Verdict.REFUSED)


def _written(folder: Path, body: bytes, usable: frozenset[int] | Verdict) -> Trial:
    (folder / "job.yaml").write_bytes(body)
    return Trial(job=folder / "job.yaml", usable=usable)


def _changed(drawn: random.Random, folder: Path) -> Trial:
    """A good job file with a few characters that are others, more or fewer."""
    _good_manifest(drawn, folder)
    body = bytearray(_good_job(folder))
    for _ in range(drawn.choice([1, 2, 8])):
        at = drawn.randrange(len(body))
        put = drawn.choice([b"", b"\t", b":", b"- ", b"'", b"{", b"&a ", b"*a ", b"!!x ", b"\0", drawn.randbytes(1)])
        body[at : at + drawn.randrange(3)] = put
    return _written(folder, bytes(body), Verdict.EITHER)


def _job_that_is_no_file(drawn: random.Random, folder: Path) -> Trial:
    (folder / "folder.yaml").mkdir()
    (folder / "circle.yaml").symlink_to("circle.yaml")
    name = drawn.choice(["none.yaml", "folder.yaml", "circle.yaml", "x" * 300, "folder.yaml/job.yaml"])
    return Trial(job=folder / name, usable=Verdict.REFUSED)


def _good_although_odd(drawn: random.Random, folder: Path) -> Trial:
    """Forms of YAML that mean the same job."""
    rows, job = _good_manifest(drawn, folder), _good_job(folder)
    anchored = job.replace(b"seeds: 0-1", b"seeds: &s 0-1").replace(
        b"steps: [2, 3]", b"steps: [2, 3]\n  guidance_scales: *s"
    )
    tree = {"manifest": str(folder / "m"), "sweep": {"steps": 2}, "output": {"uri": str(folder / "out")}}
    forms = [
        b"\xef\xbb\xbf" + job, job.replace(b"\n", b"\r\n"), b"# \xf0\x9f\x9b\x91\n---\n" + job + b"...\n", anchored,
        job + b"model: null\nrender:\n", job + b"workers: {count: 1}\n" + b"\n" * 10_000, json.dumps(tree).encode(),
    ]  # fmt: skip
    return _written(folder, drawn.choice(forms), frozenset(range(rows)))


_SETTINGS = (
    "", "=", "=x", "sweep.seeds", ".=1", "a..b=1", "sweep.=1", ".seeds=1", "sweep=3", "sweep.seeds.x=1",
    "sweep.seeds=[", "sweep.seeds={random: -1}", "sweep.seeds=a", "sweep.seeds=1,,2", "sweep.seeds=--1",
    "sweep.steps=0", "sweep.sizes=1x", "sweep.sizes=[[96]]", "sweep.sizes=[96.0, 96]", "sweep.schedulers=[]",
    "sweep.schedulers=x", "render.rows=yes", "model.id=", "model.dtype=float8", "model.revision=main",
    "model.loras=[{id: none.safetensors}]", "model.call={a: [1]}", "model.id=\0", "model.scheduler=ddim:x",
    "output.layout=zip", "output.provenance=some", "output.format=gif", "nothing=1", "model.id=./none", "manifest=",
    "manifest=[1]", "s3.endpoint_url=here", "s3.addressing_style=x", "manifest_columns={prompt: seed}",
    "manifest_columns={x: prompt}", "manifest_columns={prompt: prompt, note: prompt}", "sweep.seeds=!!python/name:os",
    "sweep.seeds=&a [*a]", "sweep.guidance_scales=1e400", "sweep.seeds=" + "[" * 3000, "sweep.steps=[1, two]",
    "model=[shapes]",
)  # fmt: skip


def _setting(drawn: random.Random, folder: Path) -> Trial:
    _good_manifest(drawn, folder)
    return Trial(settings=(*settings(folder), drawn.choice(_SETTINGS)), usable=Verdict.REFUSED)


_OUTPUTS = (
    "{here}/file", "{here}/file/inside", "{here}/circle/inside", "/proc/nothing", "/dev/null/x", "/sys/x", "s3://",
    "s3://b/x", "s3:///x", "s3://bucket/../x", "s3://bucket//x", "s3://bucket/./x", "s3://bucket/a\0b",
    "s3://bucket/.tmp-x", "gs://bucket/x", "http://host/x", "file://host/x", "~nobody-here/x", "{here}/\0",
    "s3://key:word@bucket/x", "{here}/" + "x" * 300, "s3://BUCKET_/" + "x" * 300, "az://x", "file://host", " ",
    "s3://-bucket/x",
)  # fmt: skip


def _output(drawn: random.Random, folder: Path) -> Trial:
    _good_manifest(drawn, folder)
    (folder / "file").write_text("in the way")
    (folder / "circle").symlink_to("circle")
    given = drawn.choice(_OUTPUTS).replace("{here}", str(folder))
    return Trial(settings=settings(folder, output__uri=json.dumps(given, ensure_ascii=False)), usable=Verdict.REFUSED)


def _odd_output(drawn: random.Random, folder: Path) -> Trial:
    """Names that are only names, below the folder they are in."""
    rows = _good_manifest(drawn, folder)
    odd = [
        "{date}", "{date}-{date}", "{}", "{0}", "{date!r}", "{date:%Y}", "{DATE}", "{{date}}", "%(x)s", "$HOME", "*",
        "[a]", "a b", "ü", "🛑", "-rf", "~", ".tmp", "a\nb", "{date.__class__}",
    ]  # fmt: skip
    given = json.dumps(f"{folder}/out/{drawn.choice(odd)}", ensure_ascii=False)
    return Trial(settings=settings(folder, output__uri=given), usable=frozenset(range(rows)))


def _edit(file: str, **keys: Any) -> Callable[[random.Random, Path], object]:
    """One of the values of each key; a value that is no list stands for itself."""

    def edit(drawn: random.Random, model: Path) -> None:
        read = json.loads((model / file).read_text())
        key = drawn.choice([*keys])
        (model / file).write_text(json.dumps({**read, key: drawn.choice(keys[key])}))

    return edit


_JSON = ("model_index.json", "unet/config.json", "vae/config.json", "scheduler/scheduler_config.json")
_WEIGHTS = (
    "unet/diffusion_pytorch_model.safetensors",
    "vae/diffusion_pytorch_model.safetensors",
    "text_encoder/model.safetensors",
)
_NO_JSON = (
    b"",
    b"{",
    b"[]",
    b"3",
    b"null",
    b"\xff",
    b"{]",
    b"[" * 100_000,
    b"\0" * 9,
    b'"' * 99,
    b'{"a": \x01}',
    b"\xef\xbb\xbf{}",
)
_NO_SAFETENSORS = (
    b"", b"\0" * 7, b"\0" * 8, b"\xff" * 8, b"\x02" + b"\0" * 7 + b"[]", b"\x02" + b"\0" * 7 + b"{", b"\x80\x02}",
    b"PK\x03\x04", (10**8).to_bytes(8, "little") + b"{", b"version https://git-lfs.github.com/spec/v1\n",
    b"\x0a" + b"\0" * 7 + b'{"a": "b"}',
)  # fmt: skip


def _spoil(files: tuple[str, ...], bodies: tuple[bytes, ...]) -> Callable[[random.Random, Path], object]:
    return lambda drawn, model: (model / drawn.choice(files)).write_bytes(drawn.choice(bodies))


def _remove(*files: str) -> Callable[[random.Random, Path], object]:
    return lambda drawn, model: (model / drawn.choice(files)).unlink()


def _empty(_: random.Random, model: Path) -> None:
    shutil.rmtree(model)
    model.mkdir()


def _pickle(drawn: random.Random, model: Path) -> None:
    weights = model / drawn.choice(_WEIGHTS)
    weights.rename(weights.with_suffix(drawn.choice([".bin", ".pt", ".ckpt", ".pth", ".h5"])))


MODELS: Mapping[str, Callable[[random.Random, Path], object]] = {
    "model folder that is empty": _empty,
    "model without a file": _remove(*_JSON, *_WEIGHTS, "tokenizer/tokenizer.json"),
    "model whose JSON is none": _spoil(_JSON, _NO_JSON),
    "model of an unknown class": _edit(
        "model_index.json",
        _class_name=[None, 3, "", "Pipeline", "os.system", ["pipeline", "Mine"], {}, "StableDiffusionPipeline "],
        unet=[None, [None, None], 3, "unet", []],
    ),
    "model with a nonsensical size": _edit(
        "unet/config.json",
        sample_size=[0, -24, 10**9, 24.5, "24", True, [], [24], [24, 0], [1, 2, 3], {}, 10**400, 2**31],
    ),
    "model with nonsensical levels": _edit(
        "vae/config.json", block_out_channels=[[], 4, "4", [0], [-1], [1.5], [None], ["a"], [1] * 99, {}, [True, True]]
    ),
    "model with a nonsensical scheduler": _edit(
        "scheduler/scheduler_config.json",
        _class_name=[None, 3, "", "Scheduler", ["DDIMScheduler"]],
        num_train_timesteps=["1000", 1.5, None, [], -5, 0, 1],
    ),
    "weights that are no safetensors": _spoil(_WEIGHTS, _NO_SAFETENSORS),
    "weights that are pickles": _pickle,
}
"""What becomes of the built-in model's files."""


def _model(harm: Callable[[random.Random, Path], object], drawn: random.Random, folder: Path) -> Trial:
    _good_manifest(drawn, folder)
    shutil.copytree(BUILT_IN["shapes"], folder / "model")
    harm(drawn, folder / "model")
    return Trial(settings=settings(folder, model__id=folder / "model"), usable=Verdict.REFUSED)


def _no_model(drawn: random.Random, folder: Path) -> Trial:
    _good_manifest(drawn, folder)
    given = [
        "./none",
        "/no/such",
        "~nobody-here/x",
        "a/b/c",
        "x" * 5000,
        "none",
        "../..",
        "{here}/m",
        "{here}/m/a.parquet",
        "shapes/",
    ]
    name = drawn.choice(given).replace("{here}", str(folder))
    return Trial(settings=settings(folder, model__id=name), usable=Verdict.REFUSED)


JOBS: Mapping[str, Make] = {
    **{f"job file: {name}": partial(_job_file, texts) for name, texts in JOB_FILES.items()},
    "job file with other characters": _changed,
    "job file that is no file": _job_that_is_no_file,
    "job file in an odd form": _good_although_odd,
    "settings on the command line": _setting,
    "output that cannot be": _output,
    "output of an odd name": _odd_output,
    "no such model": _no_model,
    **{name: partial(_model, harm) for name, harm in MODELS.items()},
}
