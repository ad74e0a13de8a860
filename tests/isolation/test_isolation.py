"""What a call left changed is found and put back; what torch and its users do rightly is not taken for it."""

from __future__ import annotations

import os
import signal
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from kdbench import isolation
from kdbench.errors import Incompatible, PluginError
from kdbench.isolation import aspects

KEPT = []


def enter(context):
    KEPT.append(context)
    context.__enter__()


class Function(TorchFunctionMode):
    pass


class Dispatch(TorchDispatchMode):
    pass


module_hooks = sys.modules["torch.nn.modules.module"]
CHANGES = {
    "torch's default dtype (torch.float32 → torch.float64)": lambda: torch.set_default_dtype(torch.float64),
    "torch's default device or function modes": lambda: torch.set_default_device("meta"),
    "grad mode (True → False)": lambda: torch.set_grad_enabled(False),
    "autocast": lambda: enter(torch.autocast("cpu", torch.bfloat16)),
    "torch's number of threads": lambda: torch.set_num_threads(torch.get_num_threads() + 1),
    "the precision of float32 products": lambda: torch.set_float32_matmul_precision("medium"),
    "mkldnn's enabled flag (True → False)": lambda: torch._C._set_mkldnn_enabled(False),
    "cudnn's benchmark flag": lambda: torch._C._set_cudnn_benchmark(not torch.backends.cudnn.benchmark),
    "the attention backends": lambda: torch.backends.cuda.enable_math_sdp(False),
    "torch's deterministic flags": lambda: torch._C._set_deterministic_algorithms(True),
    "autograd's saved-tensor hooks": lambda: enter(torch.autograd.graph.saved_tensors_hooks(abs, abs)),
    "hooks on all modules or optimisers": lambda: module_hooks.register_module_forward_hook(print),
    "anomaly detection": lambda: torch.autograd.set_detect_anomaly(True),
    "flushing of denormal numbers (False → True)": lambda: torch.set_flush_denormal(True),
    "the working directory": lambda: os.chdir("/"),
    "torch's dispatch modes": lambda: enter(Dispatch()),
}


@pytest.mark.parametrize("name", CHANGES)
def test_what_was_left_changed_is_named_and_put_back(name):
    before = isolation.state()
    CHANGES[name]()
    [changed] = isolation.undo(before)
    assert changed.startswith(name)
    assert isolation.state() == before
    assert isolation.undo(before) == []


def test_inference_mode_ends_and_tensors_can_be_trained_again():
    before = isolation.state()
    enter(torch.inference_mode())
    assert isolation.undo(before)[0] == "inference mode (False → True)"
    assert (torch.ones(1, requires_grad=True) * 2).requires_grad
    assert not torch.ones(1).is_inference()


def test_a_function_mode_is_taken_off_and_the_one_before_it_is_not():
    with Function() as outer:
        before = isolation.state()
        enter(Function())
        assert isolation.undo(before) == ["torch's default device or function modes"]
        assert torch._C._get_function_stack_at(0) is outer
    assert torch._C._len_torch_function_stack() == 0


def test_after_autocast_no_converted_weight_is_left_over():
    """At a wrong depth torch would keep using the weights of the first step."""
    before = isolation.state()
    enter(torch.autocast("cpu", torch.bfloat16))
    isolation.undo(before)
    layer, x = nn.Linear(2, 2), torch.ones(1, 2)
    with torch.autocast("cpu", torch.bfloat16):
        layer(x)
    with torch.no_grad():
        layer.weight.zero_()
        layer.bias.zero_()
    with torch.autocast("cpu", torch.bfloat16):
        assert not layer(x).any()


def test_warning_filters_are_put_back_without_a_word():
    before, filters = isolation.state(), list(warnings.filters)
    warnings.simplefilter("error")
    assert isolation.undo(before) == []
    assert warnings.filters == filters


def test_a_closed_stderr_is_opened_again(monkeypatch, tmp_path):
    with (tmp_path / "err").open("w") as stream:
        monkeypatch.setattr(sys, "stderr", stream)
        before = isolation.state()
        sys.stderr.close()
        assert isolation.undo(before) == ["stdout or stderr"]
        sys.stderr.write("")


class Layer(nn.Linear):
    pass


@pytest.mark.parametrize(
    ("owner", "name", "path"),
    [
        (F, "cross_entropy", "torch.nn.functional.cross_entropy"),
        (torch, "log_softmax", "torch.log_softmax"),
        (nn.Conv2d, "forward", "torch.nn.modules.conv.Conv2d.forward"),
        (torch.optim.SGD, "step", "torch.optim.sgd.SGD.step"),
        (torch.Tensor, "square", "torch.Tensor.square"),  # in front of the one that it inherits
        (isolation, "state", "kdbench.isolation.state"),
        (Layer, "extra_repr", f"{__name__}.Layer.extra_repr"),
        (np.random, "rand", "numpy.random.rand"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_replaced_function_is_named_and_put_back(owner, name, path):
    original = getattr(owner, name)
    originals = isolation.Originals({__name__})
    assert originals.undo() == []
    setattr(owner, name, lambda *_: None)
    assert originals.undo() == [path]
    assert getattr(owner, name) == original
    assert originals.undo() == []


def test_swapping_two_functions_of_torch_is_a_replacement_too(monkeypatch):
    originals = isolation.Originals()
    monkeypatch.setattr(F, "cross_entropy", F.nll_loss)
    assert originals.undo() == ["torch.nn.functional.cross_entropy"]


def test_what_torch_wraps_itself_is_accepted():
    originals = isolation.Originals()
    parameter = nn.Parameter(torch.zeros(1))
    for optimizer in (torch.optim.SGD([parameter], lr=0.1), torch.optim.AdamW([parameter])):
        optimizer.zero_grad()
    compiled = torch.compile(nn.Linear(2, 2), backend="eager")
    compiled(torch.ones(1, 2))
    assert originals.undo() == []


def test_contained_passes_errors_on_and_turns_what_is_no_exception_into_one():
    with pytest.raises(ZeroDivisionError), isolation.contained("it"):
        _ = 1 / 0
    with pytest.raises(PluginError, match=r"^it raised GeneratorExit$"), isolation.contained("it"):
        raise GeneratorExit
    with pytest.raises(KeyboardInterrupt), isolation.contained("it"):
        raise KeyboardInterrupt
    left = r"^it changed global state: grad mode \(True → False\); a plugin must restore what it changes$"
    with pytest.raises(PluginError, match=left), isolation.contained("it"):
        torch.set_grad_enabled(False)

    def refuse():
        torch.set_grad_enabled(False)
        raise Incompatible("no taps")

    with pytest.raises(PluginError, match=left), isolation.contained("it"):
        refuse()
    assert torch.is_grad_enabled()
    with isolation.restored():
        torch.set_grad_enabled(False)
    assert torch.is_grad_enabled()


def test_everything_known_is_guarded_with_this_torch():
    assert aspects._ASPECTS == aspects._KNOWN_ASPECTS


def test_a_flag_that_torch_does_not_have_is_left_out():
    assert aspects._readable(aspects._flag("cudnn", "cudnn_enabled"))
    assert not aspects._readable(aspects._flag("gone", "no_such_flag"))


def test_the_first_use_of_cuda_is_no_damage():
    gpu = [aspect for aspect in aspects._ASPECTS if aspect.name == "the current GPU or stream"]
    # What a machine with a GPU reads before and after CUDA's initialisation.
    assert aspects.restore(gpu, [None], [(0, 1, 2, 3)]) == []


def test_during_training_in_another_thread_the_main_thread_may_change_handlers_and_its_functions(monkeypatch):
    main = sys.modules["__main__"]
    monkeypatch.setattr(main, "helper", lambda: 1, raising=False)
    before = signal.getsignal(signal.SIGTERM)
    with ThreadPoolExecutor(1) as pool:
        originals = pool.submit(isolation.Originals, ["__main__"]).result()
        try:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            main.helper = later = lambda: 2
            assert pool.submit(originals.undo).result() == []
            assert (signal.getsignal(signal.SIGTERM), main.helper) == (signal.SIG_IGN, later)
        finally:
            signal.signal(signal.SIGTERM, before)


def test_a_handler_that_c_code_installed_is_left_alone(monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(signal, "getsignal", lambda number: None)  # what Python reads then
        originals = isolation.Originals()
    before = signal.getsignal(signal.SIGTERM)
    assert originals.undo() == []
    assert signal.getsignal(signal.SIGTERM) is before
