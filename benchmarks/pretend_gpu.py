"""A pretend GPU: tensors that say they are on ``cuda:0`` and compute on the CPU, with every launch and wait counted.

    with PretendGpu() as gpu:
        on_gpu = gpu.send(torch.randn(4))      # or any factory or copy with device="cuda:0"
        gpu.reset()
        on_gpu.mul(2).sum()
        print(gpu.launches, gpu.waits)         # 2 0

A launch is what a real GPU would be given to do: a kernel, or a copy in any direction. A wait is a moment in which the
host could not go on before the GPU was done: a value read, a copy that blocks, an event waited for. Views and
allocations are neither. What runs inside a custom operation is counted too. Exact on any machine.

``torch.cuda.set_sync_debug_mode("error")`` makes every wait raise ``RuntimeError``, also one that torch does not see.
"""

from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch._library.custom_ops import OPDEFS
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

CUDA = torch.device("cuda:0")

_FREE = {
    "view", "_unsafe_view", "expand", "slice", "select", "permute", "transpose", "t", "unsqueeze", "squeeze", "split",
    "split_with_sizes", "chunk", "detach", "alias", "as_strided", "unbind", "reshape", "_reshape_alias", "unfold",
    "diagonal", "narrow", "empty", "empty_strided", "empty_like", "new_empty", "new_empty_strided", "record_stream",
    "is_pinned", "device", "lift_fresh",
}  # fmt: skip
"""Views, allocations, questions."""
_WAITING = {"_local_scalar_dense", "item", "is_nonzero", "equal", "nonzero", "masked_select", "_unique2", "allclose"}
"""Their results are numbers or sizes that the host needs."""


class OnGpu(torch.Tensor):
    """A tensor that says it is on the pretend GPU."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> "OnGpu":
        shell = torch.empty_strided(held.shape, held.stride(), dtype=held.dtype, device="meta")
        made: OnGpu = torch.Tensor._make_subclass(cls, shell, False, dispatch_device=True, device_for_backend_keys=CUDA)
        made.held = held
        return made

    @property
    def device(self) -> torch.device:  # type: ignore[override]  # an attribute there
        return CUDA

    def cpu(self, *_: Any, **__: Any) -> Tensor:
        return self.to("cpu")

    def to(self, *args: Any, **kwargs: Any) -> Tensor:
        """To another dtype, or from the device, which torch would not ask it for: the shell it sees is on no device."""
        gpu = PretendGpu.present
        assert gpu is not None
        device, dtype, non_blocking, _ = torch._C._nn._parse_to(*args, **kwargs)
        kept: Tensor = self if dtype in (None, self.dtype) else torch.Tensor.to(self, dtype)
        return kept if device is None or device.type == "cuda" else gpu.fetch(kept, at_once=non_blocking)

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]  # torch's own takes more
        return f"OnGpu({tuple(self.shape)}, {self.dtype})"

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]  # as torch's own do

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]  # typed as an instance's method there
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        assert PretendGpu.present is not None, "there is no pretend GPU here"
        return PretendGpu.present.run(func, args, kwargs or {})


class PretendGpu(TorchDispatchMode):
    """The device, while it is entered; one at a time."""

    present: "PretendGpu | None" = None

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.reset()
        self.sync_debug_mode = "default"
        """As ``torch.cuda.set_sync_debug_mode`` was told."""
        self._patches = ExitStack()

    def reset(self) -> None:
        """Count from zero."""
        self.kernels: Counter[str] = Counter()
        """Launched kernels by name."""
        self.copies: Counter[str] = Counter()
        """Copies by direction: ``to``, ``from``, ``on`` the device."""
        self.waited: Counter[str] = Counter()
        """Waits by what the host waited for."""

    @property
    def launches(self) -> int:
        return self.kernels.total() + self.copies.total()

    @property
    def waits(self) -> int:
        return self.waited.total()

    def send(self, tensor: Tensor) -> Tensor:
        """Return a tensor on the device that shares the memory of one on the CPU, without counting anything."""
        return OnGpu(tensor.detach())

    def fetch(self, tensor: Tensor, *, at_once: bool) -> Tensor:
        """Return a copy on the CPU; the host waits for it unless it goes on ``at_once``."""
        self.copies["from"] += 1
        if not at_once:
            self.wait("copy")
        assert isinstance(tensor, OnGpu)
        return tensor.held.clone()

    def wait(self, what: str) -> None:
        """Count a wait of the host, or raise ``RuntimeError`` as torch does where waits are errors."""
        if self.sync_debug_mode == "error":
            raise RuntimeError(f"called a synchronizing CUDA operation: {what}")
        self.waited[what] += 1

    def send_module(self, module: torch.nn.Module) -> None:
        """Put all parameters and buffers of a module on the device, without counting anything."""
        for part in module.modules():
            for tensors in (part._parameters, part._buffers):
                for name, tensor in tensors.items():
                    if tensor is not None:
                        tensors[name] = self.send(tensor)  # type: ignore[assignment]  # a tensor in a parameter's place

    def __enter__(self) -> Any:
        assert PretendGpu.present is None, "one pretend GPU at a time"
        PretendGpu.present = self
        for target, name, new in self._replacements():
            self._patches.enter_context(patch.object(target, name, new))
        return super().__enter__()  # type: ignore[no-untyped-call]

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        self._patches.close()
        PretendGpu.present = None

    def _again(self) -> Any:
        """This device once more, for what runs while it has the turn."""
        return _Nested(self)

    def _replacements(self) -> Iterator[tuple[Any, str, Any]]:
        yield torch.cuda, "_lazy_init", lambda: None
        yield torch.cuda, "get_device_name", lambda *_: "pretend GPU"
        yield torch.cuda, "Event", lambda **_: _Event(self)
        yield torch.cuda, "Stream", lambda **_: _Stream()
        yield torch.cuda, "current_stream", lambda *_: _Stream()
        yield torch.cuda, "stream", _on_stream
        yield torch.cuda, "synchronize", lambda *_: self.wait("synchronize")
        yield torch.cuda, "set_sync_debug_mode", partial(setattr, self, "sync_debug_mode")
        yield torch.Tensor, "pin_memory", lambda tensor, *_: tensor

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self.run(func, args, kwargs or {})

    def run(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Compute on the CPU and count."""
        name = func._schema.name
        if name in OPDEFS:
            with self._again():  # its own operations come here one by one
                return OPDEFS[name]._init_fn(*args, **kwargs)
        name = name.split("::")[1]
        told = {key: value for key, value in kwargs.items() if key != "pin_memory"}
        to = told.get("device")
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        here = any(isinstance(leaf, OnGpu) for leaf in given)
        if to is not None and torch.device(to).type == "cuda":
            told["device"] = torch.device("cpu")
        out = func(*tree_map(_held, args), **tree_map(_held, told))
        if name in ("copy_", "_to_copy"):
            return self._copied(name, args, kwargs, out)
        if not here and (to is None or torch.device(to).type != "cuda"):
            return out
        self._count(name, args)
        if func._schema.is_mutable:
            return kwargs["out"] if "out" in kwargs else args[0]
        return tree_map(lambda leaf: OnGpu(leaf) if isinstance(leaf, Tensor) else leaf, out)

    def _count(self, name: str, args: Any) -> None:
        masked = name in ("index", "index_put_") and any(
            isinstance(leaf, Tensor) and leaf.dtype == torch.bool for leaf in tree_leaves(args[1:2])
        )
        if name in _WAITING or masked:
            self.wait(name)
        if name not in _FREE and name not in ("_local_scalar_dense", "item"):
            self.kernels[name] += 1

    def _copied(self, name: str, args: Any, kwargs: Any, out: Any) -> Any:
        source = args[1] if name == "copy_" else args[0]
        target = kwargs.get("device") if name == "_to_copy" else None
        from_gpu = isinstance(source, OnGpu)
        if name == "copy_":
            to_gpu = isinstance(args[0], OnGpu)
        else:
            to_gpu = from_gpu if target is None else torch.device(target).type == "cuda"
        if from_gpu or to_gpu:
            self.copies["on" if from_gpu and to_gpu else "to" if to_gpu else "from"] += 1
            at_once = kwargs.get("non_blocking") or (name == "copy_" and len(args) > 2 and args[2])
            if from_gpu != to_gpu and not at_once:
                self.wait("copy")
        if name == "copy_":
            return args[0]
        return OnGpu(out) if to_gpu else out


def _held(leaf: Any) -> Any:
    return leaf.held if isinstance(leaf, OnGpu) else leaf


class _Nested(TorchDispatchMode):
    def __init__(self, gpu: PretendGpu) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._gpu = gpu

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self._gpu.run(func, args, kwargs or {})


class _Event:
    def __init__(self, gpu: PretendGpu) -> None:
        self._gpu = gpu

    def record(self, *_: Any) -> None:
        pass

    def query(self) -> bool:
        return True

    def synchronize(self) -> None:
        self._gpu.wait("event")

    def elapsed_time(self, _: "_Event") -> float:
        return 0.0


class _Stream:
    def wait_stream(self, _: "_Stream") -> None:
        pass


@contextmanager
def _on_stream(_: _Stream) -> Iterator[None]:
    yield
