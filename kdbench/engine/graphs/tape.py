"""A recording of the operations of a step, which can be replayed on a CPU as a CUDA graph is on a GPU.

A replay executes the recorded operations on the same memory, with the numbers that the host passed when they were
recorded; no Python code of the step runs. A value that the host would compute anew at each step is frozen in it, as in
a CUDA graph, so that a replay that equals a step shows that a graph of it is right.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

WAITING = frozenset({"aten._local_scalar_dense.default", "aten.equal.default", "aten.is_nonzero.default"})
"""Operations whose result the host reads."""
DECOMPOSITIONS = frozenset(
    {
        "_linalg_check_errors",
        "_linalg_eigh",
        "_linalg_eigvals",
        "_linalg_svd",
        "linalg_eig",
        "linalg_lstsq",
        "linalg_matrix_exp",
        "linalg_pinv",
    }
)
"""Operations whose status torch reads on the host."""
COPIES = frozenset({"aten._to_copy.default", "aten.copy_.default"})
"""Operations that may copy between devices. A failure to capture one may leave torch's allocator in disorder."""
HOST = "aten.lift_fresh.default"
"""Makes a tensor of numbers of the host."""
_PLAIN = (bool, int, float, complex, str, torch.dtype, torch.device, torch.layout, torch.memory_format)


class Trace(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Lists the operations that are executed within its context, without their tensors."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.operations: list[tuple[Any, ...]] = []
        """Operator, shapes and other arguments of each: what must not change from step to step."""
        self.obstacle: str | None = None
        """Why a CUDA graph cannot record them; None if it can."""
        self.draws = False
        """Whether one of them draws random numbers."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Execute and list an operation."""
        named = dict(kwargs or {})
        returned = func(*args, **named)
        if func.namespace == "profiler":
            return returned  # the optimisers of torch mark their steps for a profiler
        self.operations.append((str(func), *(_described(leaf) for leaf in pytree.tree_leaves((args, named)))))
        self.obstacle = self.obstacle or _obstacle(func, args, returned)
        self.draws = self.draws or torch.Tag.nondeterministic_seeded in func.tags
        self._keep(func, args, named, returned)
        return returned

    def _keep(self, func: Any, args: tuple[Any, ...], named: Mapping[str, Any], returned: Any) -> None:
        """For :class:`Tape`."""

    def unlike(self, other: Trace) -> str | None:
        """In what two steps differ, in words; None if a replay of one is a replay of the other."""
        for mine, yours in zip(self.operations, other.operations, strict=False):
            if mine[0] != yours[0]:
                return f"{mine[0]} at one step, {yours[0]} at another"
            for one, two in zip(mine, yours, strict=False):
                if one != two:
                    return f"{mine[0]} gets {one} at one step, {two} at another"
        if len(self.operations) != len(other.operations):
            return f"{len(self.operations)} operations at one step, {len(other.operations)} at another"
        return None


@dataclass(frozen=True)
class _Operation:
    function: Any
    arguments: tuple[Any, ...]
    named: Mapping[str, Any]
    results: Sequence[Tensor]

    def execute(self) -> None:
        """Execute it on the memory of its arguments; its results are written where they were."""
        found = _tensors(self.function(*self.arguments, **self.named))
        for before, now in zip(self.results, found, strict=True):
            if before.data_ptr() != now.data_ptr():
                before.copy_(now)


class Tape(Trace):  # type: ignore[no-untyped-call]
    """Keeps the operations with their tensors, and replays them."""

    def __init__(self) -> None:
        super().__init__()
        self._kept: list[_Operation] = []

    def _keep(self, func: Any, args: tuple[Any, ...], named: Mapping[str, Any], returned: Any) -> None:
        # A view is the memory of its argument.
        if not _is_view(func):
            # With their shapes of now: an operation like as_strided_ may change them later.
            kept = pytree.tree_map_only(Tensor, Tensor.detach, (args, named))
            self._kept.append(_Operation(func, kept[0], kept[1], [result.detach() for result in _tensors(returned)]))

    def replay(self) -> None:
        """Execute the operations again."""
        with torch.no_grad():
            for operation in self._kept:
                operation.execute()


def record(action: Callable[[], object]) -> Tape:
    """Execute ``action`` and record its operations."""
    tape = Tape()
    with tape:
        action()
    return tape


def _obstacle(function: Any, arguments: tuple[Any, ...], returned: Any) -> str | None:
    if function.overloadpacket.__name__ in DECOMPOSITIONS:
        return f"{function}: its status is read on the host"
    if str(function) in WAITING or torch.Tag.data_dependent_output in function.tags:
        return f"{function}: the host reads a value of the device"
    if torch.Tag.dynamic_output_shape in function.tags and not _has_whole_numbers(function, arguments):
        return f"{function}: the shape of its result depends on values of the device"
    if str(function) in COPIES and len({leaf.device.type for leaf in _tensors((arguments, returned))}) > 1:
        return f"{function}: a copy between host and device at each step; register what it copies as a buffer"
    if str(function) == HOST:
        return f"{function}: a tensor is made of numbers of the host at each step; make it once, in setup"
    return None


def _has_whole_numbers(function: Any, arguments: tuple[Any, ...]) -> bool:
    """Whether it is an indexing by numbers: only a mask gives a shape that depends on values."""
    if function.overloadpacket is not torch.ops.aten.index:
        return False
    return all(index is None or index.dtype not in (torch.bool, torch.uint8) for index in arguments[1])


def _tensors(returned: Any) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(returned) if isinstance(leaf, Tensor)]


def _is_view(function: Any) -> bool:
    """Whether all results are views of an argument, or that argument with another shape, and nothing is written."""
    if torch.Tag.inplace_view in function.tags:
        return True
    infos = [result.alias_info for result in function._schema.returns]
    return bool(infos) and all(info is not None and not info.is_write for info in infos)


def _described(leaf: Any) -> Any:
    if isinstance(leaf, Tensor):
        return str(leaf.dtype).removeprefix("torch."), tuple(leaf.shape)
    if isinstance(leaf, float):
        return repr(leaf)  # NaN is not equal to itself
    return leaf if leaf is None or isinstance(leaf, _PLAIN) else type(leaf).__name__
