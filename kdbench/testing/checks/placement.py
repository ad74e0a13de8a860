"""Does the method run on the device of its inputs, without synchronisation?

Neither check needs a GPU: the method and its inputs are converted to fake tensors, which have a shape and a
device but no values, and raise an error if they are mixed with other tensors.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensor,
    FakeTensorMode,
)
from torch.utils._python_dispatch import TorchDispatchMode

from kdbench.engine.graphs.tape import DECOMPOSITIONS
from kdbench.method import Method
from kdbench.results import MAIN
from kdbench.testing.bench import Inputs
from kdbench.testing.subject import CheckFailed, CheckSkipped, Subject

ELSEWHERE = torch.device("meta")


def device(subject: Subject) -> str | None:
    """Does it move with .to(device), and create its tensors on the device of its inputs?"""
    try:
        _run_elsewhere(subject)
    except _HostSyncError as error:
        raise CheckSkipped("it stops at a host synchronisation; see host-sync") from error
    return None


def host_sync(subject: Subject) -> str | None:
    """Does a step run without host synchronisation and data-dependent shapes, as CUDA graphs require?"""
    try:
        _run_elsewhere(subject, _RefuseDecompositions())  # type: ignore[no-untyped-call]
    except _HostSyncError as error:
        raise CheckFailed(str(error)) from error
    except _DeviceMixError as error:
        raise CheckSkipped("it stops at mixed devices; see device") from error
    return None


class _HostSyncError(Exception):
    pass


class _DeviceMixError(CheckFailed):
    pass


class _RefuseDecompositions(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Raises an error for operations that wait for the device but that fake tensors accept."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        name = func.overloadpacket.__name__
        if name in DECOMPOSITIONS:
            raise _HostSyncError(f"{name.strip('_')}: its status is read on the host")
        if name == "_to_copy" and args[0].device == ELSEWHERE and str((kwargs or {}).get("device")) == "cpu":
            raise _HostSyncError("a tensor is copied to the CPU")
        return func(*args, **(kwargs or {}))


def _run_elsewhere(subject: Subject, watch: AbstractContextManager[Any] | None = None) -> None:
    """Run forward, backward, ``after_step`` and ``predict`` on fake tensors of another device.

    Raises:
        _HostSyncError: a value was read, or a shape depended on values.
        _DeviceMixError: an operation had tensors of two devices.
    """
    fake = FakeTensorMode()
    method = _moved(subject.method(), fake)
    inputs = _moved_inputs(subject.bench.made_up(), fake)
    stage = MAIN
    with fake, watch or nullcontext():
        try:
            for step in subject.steps(inputs, method):
                stage = step.stage
                step.gradients()
            stage = "after_step"
            subject.after_step(method, inputs)
            stage = "predict"
            method.eval()
            method.predict(subject.main_outputs(method, inputs)[0])
        except _HostSyncError as error:
            raise _HostSyncError(f"{stage}: {error}") from error
        except Exception as error:
            raise _explained(error, stage) from error


def _explained(error: Exception, stage: str) -> Exception:
    text = " ".join(str(error).split())
    if isinstance(error, DataDependentOutputException):
        return _HostSyncError(f"{stage}: a value is read on the host ({text}): .item(), if, int(), float()")
    if isinstance(error, DynamicOutputShapeException):
        return _HostSyncError(f"{stage}: a shape depends on values ({text}): a mask as index, nonzero, unique")
    if ".numpy() is not supported" in text:
        return _HostSyncError(f"{stage}: a value is read on the host: .numpy()")
    if "convert all Tensors to FakeTensors" in text:
        shape = re.search(r"\btensor\(\[.*?size=(\([^)]*\))", text.partition("Found in")[2])
        which = f"a tensor of shape {shape[1]}" if shape else "a tensor"
        return _DeviceMixError(f"{stage}: {which} does not move with the method; register it")
    if "same device" in text or "is not on the expected device" in text or "different devices" in text:
        return _DeviceMixError(f"{stage}: a tensor is created on the CPU, not on its inputs' device ({text})")
    return error


def _dressed(tensor: Tensor, fake: FakeTensorMode) -> Tensor:
    return FakeTensor(fake, tensor.detach().to(ELSEWHERE), ELSEWHERE)


def _moved(method: Method, fake: FakeTensorMode) -> Method:
    method = method.to(ELSEWHERE)
    for module in method.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                module._parameters[name] = nn.Parameter(_dressed(parameter, fake), parameter.requires_grad)
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = _dressed(buffer, fake)
    return method


def _moved_inputs(inputs: Inputs, fake: FakeTensorMode) -> Inputs:
    batch = inputs.batch
    return Inputs(
        {name: _dressed(tap, fake).requires_grad_() for name, tap in inputs.student.items()},
        {name: _dressed(tap, fake) for name, tap in inputs.teacher.items()},
        replace(
            batch,
            labels=_dressed(batch.labels, fake),
            indices=_dressed(batch.indices, fake),
            epoch=_dressed(batch.epoch, fake),
            progress=_dressed(batch.progress, fake),
        ),
    )
