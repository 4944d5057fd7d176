"""Models that try to run code, to be loaded from pickles, or to have weights that nobody has looked at."""

import json
import logging
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from safetensors.torch import load_file, save_file

from pipeline.errors import InputError
from pipeline.model.check import check_weights
from pipeline.model.facts import read_facts
from pipeline.model.resolve import BUILT_IN, LoraSource
from pipeline.rendering.loading import load_model

UNET, TEXT = "unet/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors"
_INDEX, _TEXT_CONFIG = "model_index.json", "text_encoder/config.json"
_SHADOWS = (
    "pipeline.py", "StableDiffusionPipeline.py", "diffusers.py", "transformers.py", "__init__.py", "unet/diffusers.py",
    "unet/__init__.py", "scheduler/diffusers.py", "tokenizer/transformers.py", "text_encoder/transformers.py",
)  # fmt: skip
"""Modules that come with a model under names that are imported anyway."""

Harm = Callable[[Path, Path], object]
"""Spoils a model's folder; what it then runs would create the file of the second path."""


class _Payload:
    """Creates a file when it is unpickled."""

    def __init__(self, ran: Path) -> None:
        self._ran = ran

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str, str]]:
        return open, (str(self._ran), "w")


def _pickle(path: Path, ran: Path) -> None:
    torch.save({"conv_in.weight": _Payload(ran)}, path)


def _code(path: Path, ran: Path) -> None:
    path.parent.mkdir(exist_ok=True)
    names = ("Mine", "StableDiffusionPipeline", "DDIMScheduler", "CLIPTokenizer", "CLIPTextModel")
    path.write_text(f"open({str(ran)!r}, 'w').close()\n" + "".join(f"class {name}: pass\n" for name in names))


def _change(path: Path, **keys: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **keys}))


def _instead(weights: str, suffix: str) -> Harm:
    """A pickle in place of the weights, under this ending."""

    def harm(model: Path, ran: Path) -> None:
        (model / weights).unlink()
        _pickle((model / weights).with_suffix(suffix), ran)

    return harm


def _beside(model: Path, ran: Path) -> None:
    for name in ("unet/diffusion_pytorch_model.bin", "text_encoder/pytorch_model.bin", "vae/weights.ckpt", "x.pt"):
        _pickle(model / name, ran)


def _listed(weights: str, name: str) -> Harm:
    """Split weights, whose index names a file that must not be loaded; what it names is there."""

    def harm(model: Path, ran: Path) -> None:
        good = model / weights
        tensors = load_file(good)
        if name.endswith(".safetensors"):
            save_file({key: tensor * 0 for key, tensor in tensors.items()}, good.parent / name, {"format": "pt"})
        else:
            _pickle(good.parent / name, ran)
        good.rename(good.with_name("unlisted.safetensors"))
        index = {"metadata": {}, "weight_map": dict.fromkeys(tensors, name)}
        (model / f"{weights}.index.json").write_text(json.dumps(index))

    return harm


def _own_name(name: str) -> Harm:
    """A configuration that names the file of its weights."""

    def harm(model: Path, ran: Path) -> None:
        _listed(TEXT, name)(model, ran)
        (model / f"{TEXT}.index.json").unlink()
        (model / "text_encoder" / "unlisted.safetensors").rename(model / TEXT)
        _change(model / _TEXT_CONFIG, transformers_weights=name)

    return harm


def _adapter(model: Path, ran: Path) -> None:
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "target_modules": ["q_proj"]}
    (model / "text_encoder" / "adapter_config.json").write_text(json.dumps(config))
    _pickle(model / "text_encoder" / "adapter_model.bin", ran)


def _nested(class_name: str) -> Harm:
    """A whole pipeline as a component, with weights of its own."""

    def harm(model: Path, ran: Path) -> None:
        shutil.copytree(BUILT_IN["shapes"], model / "scheduler", dirs_exist_ok=True)
        _instead(UNET, ".bin")(model / "scheduler", ran)
        _change(model / _INDEX, scheduler=["diffusers", class_name])

    return harm


def _component(name: str, library: str = "mine", class_name: str = "Mine") -> Harm:
    """A component of a library of its own, which lies in the component's folder and beside it."""

    def harm(model: Path, ran: Path) -> None:
        for path in (model / name / f"{library}.py", model / f"{library}.py"):
            _code(path, ran)
        _change(model / _INDEX, **{name: [library, class_name]})

    return harm


def _class(model: Path, ran: Path) -> None:
    _code(model / "mine.py", ran)
    _change(model / _INDEX, _class_name=["mine", "Mine"])


def _shadows(model: Path, ran: Path) -> None:
    for name in _SHADOWS:
        _code(model / name, ran)


def _auto_map(model: Path, ran: Path) -> None:
    auto = {"AutoModel": "mine.Mine", "AutoConfig": "mine.Mine", "AutoTokenizer": ["mine.Mine", None]}
    for config in (_TEXT_CONFIG, "tokenizer/tokenizer_config.json", "unet/config.json", "vae/config.json"):
        _code(model / Path(config).parent / "mine.py", ran)
        _change(model / config, auto_map=auto, trust_remote_code=True, custom_pipeline="mine")


def _auto_class(name: str, class_name: str) -> Harm:
    def harm(model: Path, ran: Path) -> None:
        _auto_map(model, ran)
        _change(model / _INDEX, **{name: ["transformers", class_name]})

    return harm


def _kernel(model: Path, _: Path) -> None:
    _change(model / _TEXT_CONFIG, attn_implementation="org/kernel")


def _bytes(weights: str, body: bytes) -> Harm:
    return lambda model, _: (model / weights).write_bytes(body)


_LYING_HEADER = json.dumps({"conv_in.weight": {"dtype": "F32", "shape": [9], "data_offsets": [0, 10**12]}}).encode()

PICKLES: Mapping[str, Harm] = {
    **{f"weights as {suffix}": _instead(UNET, suffix) for suffix in (".bin", ".pt", ".pth", ".ckpt")},
    "text encoder as .bin": _instead(TEXT, ".bin"),
    "a pickle called .safetensors": _instead(UNET, ".safetensors"),
    "a pickled text encoder called .safetensors": _instead(TEXT, ".safetensors"),
    "split weights that are pickles": _listed(UNET, "weights.bin"),
    "a split text encoder of pickles": _listed(TEXT, "weights.bin"),
    "a configuration that names a pickle": _own_name("adapter_model.bin"),
    "a pickled adapter": _adapter,
    "a pipeline with pickles as a component": _nested("StableDiffusionPipeline"),
    "any pipeline with pickles as a component": _nested("DiffusionPipeline"),
}
CODE: Mapping[str, Harm] = {
    "a pipeline class of its own": _class,
    **{f"a {name} of its own": _component(name) for name in ("unet", "tokenizer", "scheduler", "text_encoder")},
    "a component more": _component("extra"),
    "a component of the standard library": _component("scheduler", "subprocess", "Popen"),
    "a component that is a function": _component("tokenizer", "transformers", "pipeline"),
    "modules named like libraries": _shadows,
    "an automatic model": _auto_class("text_encoder", "AutoModel"),
    "an automatic tokenizer": _auto_class("tokenizer", "AutoTokenizer"),
    "a kernel of the Hub": _kernel,
}
WEIGHTS: Mapping[str, Harm] = {
    "weights cut off": _bytes(UNET, b"\x10\0\0\0\0\0\0\0{"),
    "a header of terabytes": _bytes(UNET, b"\xff" * 16),
    "a header that lies": _bytes(UNET, len(_LYING_HEADER).to_bytes(8, "little") + _LYING_HEADER),
    "a header without tensors": _bytes(TEXT, b"\x02\0\0\0\0\0\0\0[]"),
    "a pointer of git-lfs": _bytes(UNET, b"version https://git-lfs.github.com/spec/v1\n"),
    "split weights outside their folder": _listed(TEXT, "../outside.safetensors"),
    "split weights of a variant": _listed(UNET, "weights.fp16.safetensors"),
    "a configuration that names a variant": _own_name("model.fp16.safetensors"),
}
IGNORED: Mapping[str, Harm] = {
    "pickles beside the weights": _beside,
    "a safety checker of its own": _component("safety_checker"),
    "an auto_map in every configuration": _auto_map,
}
"""Models that are good but for what nobody looks at."""


def refuses(harm: Harm, folder: Path) -> str | None:
    """Why not, if a model spoiled so is loaded after all, or does anything on the way."""
    said = _tried(harm, folder)
    return None if said is None else said or "it was loaded"


def ignores(harm: Harm, folder: Path) -> str | None:
    """Why not, if a model spoiled so is refused, or does anything on the way."""
    said = _tried(harm, folder)
    return "it was refused" if said is None else said or None


def refuses_lora(suffix: str, folder: Path) -> str | None:
    """The same for a pickled LoRA with this ending."""
    path, ran = folder / f"style{suffix}", folder / "ran"
    _pickle(path, ran)
    with _watched() as read:
        try:
            load_model(
                BUILT_IN["shapes"], dtype="float32", device="cpu", loras=[(LoraSource(lora_id=str(path)).file(), 1)]
            )
        except InputError:
            return "it did something" if read or ran.exists() else None
    return "it was loaded"


def _tried(harm: Harm, folder: Path) -> str | None:
    """None if the model was refused, "" if it was loaded, else what it did."""
    model, ran = folder / "model", folder / "ran"
    shutil.copytree(BUILT_IN["shapes"], model)
    harm(model, ran)
    with _watched() as read:
        refusals = [_refused(partial(check, model)) for check in (read_facts, check_weights, _load)]
    if read or ran.exists():
        return f"it did something: {[*read, *(['ran code'] if ran.exists() else [])]}"
    if not refusals[-1]:
        return "" if not any(refusals) else "it would be loaded where nobody has checked it before"
    return None


def _load(model: Path) -> None:
    load_model(model, dtype="float32", device="cpu")


def _refused(work: Callable[[], object]) -> bool:
    try:
        work()
    except InputError:
        return True
    return False


@contextmanager
def _watched() -> Iterator[list[str]]:
    """Notes every attempt to read a pickle with torch; what libraries say of odd files is of no interest."""
    read: list[str] = []

    def load(file: Any, *_: object, **__: object) -> None:
        read.append(f"torch.load of {file}")
        raise RuntimeError("pickle")

    logging.disable(logging.ERROR)
    try:
        with patch("torch.load", load):
            yield read
    finally:
        logging.disable(logging.NOTSET)
