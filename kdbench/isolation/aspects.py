"""Global state of torch and Python: read before a plugin's call, and restored after it."""

from __future__ import annotations

import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
import torch.utils._device as device_module

State: TypeAlias = list[Any]


@dataclass(frozen=True)
class _Aspect:
    """Something that holds for the whole process (or thread): ``restore`` takes what ``read`` gave."""

    name: str
    read: Callable[[], Any]
    restore: Callable[[Any], object]
    shown: bool = True
    """Whether the value means something to a reader."""
    quiet: bool = False
    """Restored without an error: common, and without effect on numbers."""


# ---- torch. Much of this has no public reading function.

_C: Any = torch._C
_MODULE: Any = sys.modules["torch.nn.modules.module"]
_OPTIMIZER: Any = sys.modules["torch.optim.optimizer"]
_REGISTRIES = [
    registry
    for owner in (_MODULE, _OPTIMIZER)
    for name, registry in vars(owner).items()
    if name.startswith("_global_") and isinstance(registry, dict)
]
_PRECISIONS = [("generic", "all")]
_PRECISIONS += [(backend, op) for backend in ("cuda", "mkldnn") for op in ("all", "matmul", "conv", "rnn")]
_ATTENTION = [name for name in ("flash", "mem_efficient", "math", "cudnn") if hasattr(_C, f"_get_{name}_sdp_enabled")]
_inference_guards: list[Any] = []


def _read_modes() -> tuple[Any, ...]:
    stack = [_C._get_function_stack_at(i) for i in range(_C._len_torch_function_stack())]
    default = getattr(torch._GLOBAL_DEVICE_CONTEXT, "device_context", None)
    return default, device_module.CURRENT_DEVICE, *stack


def _restore_modes(value: tuple[Any, ...]) -> None:
    default, current, *stack = value
    for _ in range(_C._len_torch_function_stack()):
        _C._pop_torch_function_stack()
    for mode in stack:
        _C._push_on_torch_function_stack(mode)
    torch._GLOBAL_DEVICE_CONTEXT.device_context = default
    device_module.CURRENT_DEVICE = current


def _read_dispatch_modes() -> tuple[Any, ...]:
    return tuple(_C._get_dispatch_stack_at(i) for i in range(_C._len_torch_dispatch_stack()))


def _restore_dispatch_modes(value: tuple[Any, ...]) -> None:
    from torch.utils._python_dispatch import _pop_mode, _push_mode

    while _C._len_torch_dispatch_stack() > 0:
        _pop_mode()
    for mode in value:
        _push_mode(mode)


def _restore_inference_mode(value: bool) -> None:
    # A guard ends with its object; this one is to last.
    guard = _C._InferenceMode(value)
    guard.__enter__()
    _inference_guards.append(guard)


def _read_autocast() -> tuple[Any, ...]:
    depth = torch.autocast_increment_nesting() - 1
    torch.autocast_decrement_nesting()
    devices = [(torch.is_autocast_enabled(d), torch.get_autocast_dtype(d)) for d in ("cpu", "cuda")]
    return depth, torch.is_autocast_cache_enabled(), *devices


def _restore_autocast(value: tuple[Any, ...]) -> None:
    depth, cache, *devices = value
    # At another depth torch would keep the converted weights of an earlier step.
    while torch.autocast_increment_nesting() > depth + 1:
        torch.autocast_decrement_nesting()
        torch.autocast_decrement_nesting()
    torch.autocast_decrement_nesting()
    torch.set_autocast_cache_enabled(cache)
    for device, (enabled, dtype) in zip(("cpu", "cuda"), devices, strict=True):
        torch.set_autocast_enabled(device, enabled)
        torch.set_autocast_dtype(device, dtype)
    torch.clear_autocast_cache()


def _read_precision() -> tuple[str, ...]:
    try:
        legacy = _C._get_float32_matmul_precision()
    except RuntimeError:  # set in the old and in the new way at once
        legacy = ""
    return legacy, *[_C._get_fp32_precision_getter(*key) for key in _PRECISIONS]


def _restore_precision(value: tuple[str, ...]) -> None:
    legacy, *precisions = value
    if legacy:
        torch.set_float32_matmul_precision(legacy)
    for key, precision in zip(_PRECISIONS, precisions, strict=True):
        _C._set_fp32_precision_setter(*key, precision)


def _read_saved_hooks() -> tuple[Any, Any]:
    hooks = _C._autograd
    return hooks._top_saved_tensors_default_hooks(True), hooks._saved_tensors_hooks_get_disabled_error_message()


def _restore_saved_hooks(value: tuple[Any, Any]) -> None:
    top, disabled = value
    hooks = _C._autograd
    if disabled is None:
        hooks._saved_tensors_hooks_enable()
    while (now := hooks._top_saved_tensors_default_hooks(True)) is not None and now != top:
        hooks._pop_saved_tensors_default_hooks()
    if top is not None and now is None:
        hooks._push_saved_tensors_default_hooks(*top)
    if disabled is not None:
        hooks._saved_tensors_hooks_disable(disabled)


def _read_registries() -> list[tuple[Any, ...]]:
    return [tuple(registry.items()) for registry in _REGISTRIES] + [(_MODULE._global_is_full_backward_hook,)]


def _restore_registries(value: list[tuple[Any, ...]]) -> None:
    *entries, (_MODULE._global_is_full_backward_hook,) = value
    for registry, kept in zip(_REGISTRIES, entries, strict=True):
        registry.clear()
        registry.update(kept)


def _restore_deterministic(value: tuple[bool, bool, bool]) -> None:
    # The public function imports torch's compiler.
    _C._set_deterministic_algorithms(value[0], warn_only=value[1])
    _C._set_deterministic_fill_uninitialized_memory(value[2])


def _read_attention() -> tuple[bool, ...]:
    return *[getattr(_C, f"_get_{name}_sdp_enabled")() for name in _ATTENTION], torch.backends.mha._is_fastpath_enabled


def _restore_attention(value: tuple[bool, ...]) -> None:
    *backends, torch.backends.mha._is_fastpath_enabled = value
    for name, enabled in zip(_ATTENTION, backends, strict=True):
        getattr(_C, f"_set_sdp_use_{name}")(enabled)


def _read_gpu() -> tuple[Any, ...] | None:
    if not torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        return None
    device = torch.cuda.current_device()
    return device, *_C._cuda_getCurrentStream(device)


def _restore_gpu(value: tuple[Any, ...]) -> None:
    torch.cuda.set_device(value[0])
    stream, index, kind = value[1:]
    _C._cuda_setStream(stream_id=stream, device_index=index, device_type=kind)


_SMALLEST = 5e-324


def _flag(name: str, of: str) -> _Aspect:
    """A flag of ``torch._C`` with a reading and a setting function."""
    return _Aspect(name, getattr(_C, f"_get_{of}", _missing), getattr(_C, f"_set_{of}", _missing))


def _missing(*_: Any) -> None:
    raise AttributeError("this torch has no such function")


# ---- Python


def _usable(stream: Any) -> bool:
    return stream is not None and not stream.closed


def _restore_streams(value: tuple[bool, bool]) -> None:
    for name, number, usable in (("stdout", 1, value[0]), ("stderr", 2, value[1])):
        if usable and not _usable(getattr(sys, name)):
            own = getattr(sys, f"__{name}__")
            setattr(sys, name, own if _usable(own) else _reopened(number))


def _reopened(number: int) -> Any:
    try:
        return open(number, "w", encoding="utf-8", errors="backslashreplace", buffering=1, closefd=False)
    except OSError:
        return open(os.devnull, "w", encoding="utf-8")


def _read_filters() -> tuple[Any, ...]:
    return tuple(warnings.filters)


def _restore_filters(value: tuple[Any, ...]) -> None:
    warnings.filters[:] = value  # type: ignore[index]
    warnings._filters_mutated()  # type: ignore[attr-defined]


def _read_folder() -> str | None:
    try:
        return os.getcwd()
    except FileNotFoundError:
        return None


def in_main_thread() -> bool:
    """Whether signals reach this thread, and it may install handlers."""
    return threading.current_thread() is threading.main_thread()


def _read_handlers() -> list[Any] | None:
    # Other threads cannot install handlers, and the main thread may do so beside a training in another one.
    return [signal.getsignal(number) for number in _SIGNALS] if in_main_thread() else None


def _restore_handlers(value: list[Any]) -> None:
    for number, handler in zip(_SIGNALS, value, strict=True):
        # None: installed by C code, which Python cannot install again.
        if handler is not None and in_main_thread():
            signal.signal(number, handler)


_KNOWN_ASPECTS = (
    _Aspect("torch's default dtype", torch.get_default_dtype, torch.set_default_dtype),
    _Aspect("torch's default device or function modes", _read_modes, _restore_modes, shown=False),
    _Aspect("torch's dispatch modes", _read_dispatch_modes, _restore_dispatch_modes, shown=False),
    _Aspect("inference mode", torch.is_inference_mode_enabled, _restore_inference_mode),
    _Aspect("grad mode", torch.is_grad_enabled, _C._set_grad_enabled),
    _Aspect("autocast", _read_autocast, _restore_autocast, shown=False),
    _Aspect("torch's number of threads", torch.get_num_threads, torch.set_num_threads),
    _Aspect("the precision of float32 products", _read_precision, _restore_precision, shown=False),
    _flag("mkldnn's enabled flag", "mkldnn_enabled"),
    _flag("mkldnn's deterministic flag", "mkldnn_deterministic"),
    _flag("cudnn's enabled flag", "cudnn_enabled"),
    _flag("cudnn's benchmark flag", "cudnn_benchmark"),
    _flag("cudnn's deterministic flag", "cudnn_deterministic"),
    _flag("cudnn's allow_tf32 flag", "cudnn_allow_tf32"),
    _flag("nnpack's enabled flag", "nnpack_enabled"),
    _Aspect("the attention backends", _read_attention, _restore_attention, shown=False),
    _Aspect(
        "torch's deterministic flags",
        lambda: (
            _C._get_deterministic_algorithms(),
            _C._get_deterministic_algorithms_warn_only(),
            _C._get_deterministic_fill_uninitialized_memory(),
        ),
        _restore_deterministic,
        shown=False,
    ),
    _Aspect("autograd's saved-tensor hooks", _read_saved_hooks, _restore_saved_hooks, shown=False),
    _Aspect("hooks on all modules or optimisers", _read_registries, _restore_registries, shown=False),
    _Aspect(
        "anomaly detection",
        lambda: (torch.is_anomaly_enabled(), torch.is_anomaly_check_nan_enabled()),
        lambda value: torch.set_anomaly_enabled(*value),
        shown=False,
    ),
    _Aspect("autograd's multithreading", _C._is_multithreading_enabled, _C._set_multithreading_enabled),
    _Aspect("flushing of denormal numbers", lambda: _SMALLEST * 1.0 == 0.0, torch.set_flush_denormal),
    _Aspect("the current GPU or stream", _read_gpu, _restore_gpu, shown=False),
    _Aspect("the working directory", _read_folder, os.chdir),
    _Aspect("Python's recursion limit", sys.getrecursionlimit, sys.setrecursionlimit, quiet=True),
    _Aspect("stdout or stderr", lambda: (_usable(sys.stdout), _usable(sys.stderr)), _restore_streams, shown=False),
    _Aspect("warning filters", _read_filters, _restore_filters, shown=False, quiet=True),
)


def _readable(aspect: _Aspect) -> bool:
    try:
        aspect.read()
    except (AttributeError, RuntimeError, TypeError):
        return False
    return True


# Private functions come and go between versions of torch. What one does not have is not guarded there.
_ASPECTS = tuple(filter(_readable, _KNOWN_ASPECTS))
_SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
_READERS = [aspect.read for aspect in _ASPECTS]

# Reading these takes longer, and they move no number.
SLOW_ASPECTS = (
    _Aspect("numpy's error handling", np.geterr, lambda value: np.seterr(**value), shown=False, quiet=True),
    _Aspect("a signal's handler", _read_handlers, _restore_handlers, shown=False, quiet=True),
)


def state() -> State:
    """The state that a plugin's call must not change."""
    return [read() for read in _READERS]


def undo(before: State) -> list[str]:
    """Restore what has changed since :func:`state` returned ``before``, and return its names."""
    now = state()
    if now == before:
        return []
    return restore(_ASPECTS, before, now)


def restore(aspects: Iterable[_Aspect], before: Iterable[Any], now: Iterable[Any]) -> list[str]:
    """Restore each aspect whose value differs, and return the names of those that concern training."""
    changed = []
    for aspect, old, new in zip(aspects, before, now, strict=True):
        # None was nothing that a call could change: CUDA before its first use, handlers outside the main thread.
        if old == new or old is None:
            continue
        aspect.restore(old)
        if not aspect.quiet:
            changed.append(f"{aspect.name} ({old} → {new})" if aspect.shown else aspect.name)
    return changed


def complaint(changed: Iterable[str]) -> str:
    """The message for what :func:`undo` or :meth:`Originals.undo` named."""
    return f"changed global state: {', '.join(changed)}; a plugin must restore what it changes"
