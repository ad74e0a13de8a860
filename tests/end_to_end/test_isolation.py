"""Misbehaving methods, networks and observers beside innocent trials, which must end with the same bits.

A run for each fault takes seconds: every fifth is tried, or all of them with KDBENCH_ALL_FAULTS=1.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from kdbench.errors import KdbenchError
from kdbench.run import run_suite

SUITE = """
name = "{name}"
question = "Does a neighbour matter?"
seeds = [0]
checkpoint_every = 1
plugins = {plugins}

[data]
name = "digits"
train_limit = 48
test_limit = 20

[recipe]
epochs = 2
batch_size = 24
augmentation = [{{ name = "mixup" }}]
{pairs}
[[pairs]]
teacher = "resnet8"
student = "resnet8"
{methods}
[[methods]]
name = "steady"

[[methods]]
name = "kd"
"""

COMMON = """
import ctypes, gc, os, random, signal, sys, warnings
import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from kdbench.method import Method
from kdbench.hookspecs import ModelSpec, hookimpl

kept = []
def keep(thing):
    kept.append(thing)
    return thing

class Modes:
    from torch.overrides import TorchFunctionMode
    from torch.utils._python_dispatch import TorchDispatchMode
    class Function(TorchFunctionMode):
        def __torch_function__(self, function, types, args=(), kwargs=None):
            result = function(*args, **(kwargs or {}))
            return result * 1.5 if function is F.cross_entropy else result
    class Dispatch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            result = function(*args, **(kwargs or {}))
            return result * 1.5 if "log_softmax.default" in str(function) else result

class Worse(BaseException):
    pass

class Unspeakable(Exception):
    def __str__(self):
        raise RuntimeError("no words")
    __repr__ = __str__
"""

STEADY = """
class Steady(Method):
    \"\"\"A careful third party: reads all there is to read, and draws from every global generator.\"\"\"
    name = "steady"
    reads = frozenset({"logits", "stage-1"})

    def setup(self, student, teacher, data):
        self.adapter = nn.Linear(64, 64)
        self.prototypes, self.classes = teacher.classifier_weight, data.labels

    def forward(self, student, teacher, batch):
        s, t = student["stage-1"].mean((2, 3)), teacher["stage-1"].mean((2, 3))
        # Without data no label: while a suite is planned.
        wanted = self.prototypes[self.classes[batch.indices]]
        noise = random.random() + np.random.rand() + torch.rand(())
        return {
            "ce": (batch.cross_entropy(student.logits), 1.0),
            "kd": (F.mse_loss(student.logits, teacher.logits), 0.1),
            "hint": (F.mse_loss(self.adapter(s), t), 0.1),
            "pull": (F.mse_loss(self.adapter(s), wanted), 0.01),
            "noise": (student.logits.square().mean() * noise, 0.01),
        }
"""

FAULTY = """
class Faulty(Method):
    name = "faulty"
    reads = frozenset({{"logits", "stage-1"}})
    calls = 0

    def __init__(self):
        super().__init__()
        {init}

    def setup(self, student, teacher, data):
        self.adapter = nn.Linear(64, 64)
        self.t = teacher
        if data.labels is not None:
            {setup}

    def forward(self, student, teacher, batch):
        self.calls += 1
        terms = {{"ce": (batch.cross_entropy(student.logits), 1.0)}}
        {forward}
        return terms

    def after_step(self, student, teacher, batch):
        {after_step}

    def predict(self, student):
        logits = student.logits
        {predict}
        return logits

    {more}

{at_import}
"""

NETWORK = """
from kdbench.models.resnet import resnet

def build(*, classes, image_shape):
    network = resnet(depth=8, classes=classes, image_shape=image_shape)
    plain = type(network)

    class Faulty(plain):
        def forward(self, images, reads=()):
            real = images.device.type != "meta" and images.abs().sum() > 0
            taps = super().forward(images, reads)
            if real:
                {network}
            return taps
        {more}

    network.__class__ = Faulty
    {build}
    return network

@hookimpl
def kdbench_models():
    return [ModelSpec("faulty-net", __name__ + ":build")]
"""

OBSERVER = """
@hookimpl
def kdbench_suite_started(plan, run):
    {started}

@hookimpl
def kdbench_trial_started(trial, run):
    {trial}

@hookimpl
def kdbench_epoch_finished(trial, record, run):
    {epoch}

@hookimpl
def kdbench_trial_finished(trial, result, run):
    {finished}
"""

STATES = {
    "default dtype": (
        "torch.set_default_dtype(torch.float64)",
        "torch's default dtype (torch.float32 → torch.float64)",
    ),
    "default device": ("torch.set_default_device('meta')", "torch's default device"),
    "grad mode": ("torch.set_grad_enabled(False)", "grad mode (True → False)"),
    "inference mode": ("keep(torch.inference_mode()).__enter__()", "inference mode (False → True)"),
    "autocast": ("keep(torch.autocast('cpu', torch.bfloat16)).__enter__()", "autocast"),
    "threads": ("torch.set_num_threads(torch.get_num_threads() + 1)", "torch's number of threads"),
    "matmul precision": ("torch.set_float32_matmul_precision('medium')", "the precision of float32 products"),
    "deterministic": ("torch._C._set_deterministic_algorithms(True)", "torch's deterministic flags"),
    "denormals": ("torch.set_flush_denormal(True)", "flushing of denormal numbers"),
    "saved tensors": (
        "keep(torch.autograd.graph.saved_tensors_hooks(lambda t: t * 1.5, lambda t: t)).__enter__()",
        "autograd's saved-tensor hooks",
    ),
    "function mode": ("keep(Modes.Function()).__enter__()", "function modes"),
    "dispatch mode": ("keep(Modes.Dispatch()).__enter__()", "torch's dispatch modes"),
    "forward hooks": (
        "nn.modules.module.register_module_forward_hook("
        "lambda m, i, o: o * 1.5 if isinstance(m, nn.Linear) and 'aulty' not in str(type(m)) else None)",
        "hooks on all modules or optimisers",
    ),
    "backward hooks": (
        "nn.modules.module.register_module_full_backward_hook("
        "lambda m, i, o: tuple(g * 1.5 for g in i) if isinstance(m, nn.BatchNorm2d) else None)",
        "hooks on all modules or optimisers",
    ),
    "optimiser hooks": (
        "sys.modules['torch.optim.optimizer'].register_optimizer_step_pre_hook("
        "lambda o, *_: [g.update(lr=g['lr'] * 1.5) for g in o.param_groups] and None)",
        "hooks on all modules or optimisers",
    ),
    "working directory": ("os.chdir('/')", "the working directory"),
    "stderr": ("sys.stderr.close()", "stdout or stderr"),
}
# Put back without blame, or without effect on anybody: the faulty trial itself ends well.
HARMLESS_STATES = {
    "torch's generator": "torch.manual_seed(0)",
    "numpy's generator": "np.random.seed(0)",
    "Python's generator": "random.seed(0)",
    "warnings": "warnings.simplefilter('error')",
    "recursion": "sys.setrecursionlimit(400)",
    "numpy's errors": "np.seterr(all='raise')",
    "signals": "signal.signal(signal.SIGINT, signal.SIG_IGN)",
}
WRITES = {
    "indices": "batch.indices.zero_()",
    "labels through data": "batch.labels.data.zero_()",
    "labels through numpy": "batch.labels.numpy()[:] = 0",
    "indices through numpy": "batch.indices.numpy()[:] = 0",
    "mixed labels through data": "batch.mixed_labels.data.zero_()",
    "mix through numpy": "batch.mix.numpy()[...] = 0.9",
    "teacher through data": "teacher.logits.data.zero_()",
    "teacher through numpy": "teacher['stage-1'].numpy()[:] = 1",
    "teacher through dlpack": "torch.from_dlpack(teacher.logits).data.zero_()",
    "teacher through storage": "t = teacher.logits.untyped_storage(); t.fill_(0)",
    "teacher through set_": "torch.empty(0).set_(teacher.logits.untyped_storage()).fill_(1)",
    "teacher stashed": "keep(teacher.logits); kept[0].data.mul_(2)",
    "taps taken away": "teacher.taps.clear()",
    "teacher through memory": "ctypes.memset(teacher.logits.data_ptr(), 0, 96)",
}
SETUP_WRITES = {
    "classifier weight": "teacher.classifier_weight.zero_()",
    "classifier weight through data": "teacher.classifier_weight.data.zero_()",
    "classifier weight through numpy": "teacher.classifier_weight.numpy()[:] = 1",
    "batch norm": "[t.batch_norm[0].data.zero_() for t in teacher.taps.values() if t.batch_norm]",
    "signature's taps": "teacher.taps.clear()",
    "training labels": "data.labels.zero_()",
}
PATCHES = {
    "cross_entropy": (
        "old = F.cross_entropy; F.cross_entropy = lambda *a, **k: old(*a, **k) * 1.5",
        "torch.nn.functional.cross_entropy",
    ),
    "log_softmax": (
        "old = torch.log_softmax; torch.log_softmax = lambda *a, **k: old(*a, **k) * 1.5",
        "torch.log_softmax",
    ),
    "an optimiser's step": ("torch.optim.SGD.step = lambda self, closure=None: None", "torch.optim.sgd.SGD.step"),
    "Linear.forward": (
        "nn.Linear.forward = lambda self, x: F.linear(x, self.weight)",
        "torch.nn.modules.linear.Linear.forward",
    ),
    "Tensor.square": ("torch.Tensor.square = lambda x: x * 1.5", "torch.Tensor.square"),
    "another's forward": (
        "other = next(c for c in Method.__subclasses__() if c.__name__ == 'Steady');"
        "other.forward = lambda self, s, t, b: {'ce': (b.cross_entropy(s.logits), 1.5)}",
        "Steady.forward",
    ),
    "the label term": (
        "from kdbench.method import Batch; Batch.cross_entropy = lambda self, l: l.square().mean()",
        "kdbench.method.Batch.cross_entropy",
    ),
}
ERRORS = {
    "SystemExit": ("SystemExit(0)", "SystemExit"),
    "GeneratorExit": ("GeneratorExit()", "GeneratorExit"),
    "KeyboardInterrupt": ("KeyboardInterrupt()", "KeyboardInterrupt"),
    "StopIteration": ("StopIteration()", "StopIteration"),
    "BaseException": ("Worse('bad')", "Worse: bad"),
    "a bad __str__": ("Unspeakable()", "Unspeakable"),
    "ResultsError": ("__import__('kdbench').errors.ResultsError('forged')", "forged"),
    "DataError": ("__import__('kdbench').errors.DataError('forged')", "forged"),
    "KdbenchError": ("__import__('kdbench').errors.KdbenchError('forged')", "forged"),
    "Interrupted": ("sys.modules['kdbench.engine.cohort'].Interrupted('forged')", "forged"),
    "AcceleratorError": ("torch.AcceleratorError('forged')", "forged"),
    "OutOfMemoryError": ("torch.OutOfMemoryError('forged')", "out of memory on cpu"),
    "surrogates": ("ValueError('\\ud800')", "ValueError: \\ud800"),
    "a long message": ("ValueError('x' * 10**7)", "(10000000 characters)"),
}
PREDICTIONS = {
    "too few rows": ("logits = logits[:-1]", "floating-point logits of shape"),
    "too few classes": ("logits = logits[:, :5]", "floating-point logits of shape"),
    "integers": ("logits = logits.long()", "got torch.int64"),
    "complex": ("logits = logits + 0j", "got torch.complex64"),
    "None": ("logits = None", "got NoneType"),
    "a list": ("logits = logits.tolist()", "got list"),
    "another device": ("logits = logits.to('meta')", "predict must return logits on cpu, got them on meta"),
}
TERMS = {
    "nothing": ("terms = None", "forward must return named terms, got NoneType"),
    "a name that is no string": ("terms[object()] = terms.pop('ce')", "must name its terms by strings"),
    "a vector": ("terms['ce'] = (student.logits.sum(1), 1.0)", "must be a scalar, got shape (24,)"),
    "a vector as weight": ("terms['ce'] = (terms['ce'][0], torch.ones(3))", "grad can be implicitly created only"),
    "no graph": ("terms['ce'] = (torch.zeros(()), 1.0)", "does not require grad"),
}
EXTRA = {
    "a function": ("lambda: 0", "its state cannot be saved"),
    "an object": ("Unspeakable()", "its state cannot be saved"),
    "an error": ("[][1]", "IndexError"),
    "a forged error": ("(_ for _ in ()).throw(__import__('kdbench').errors.ResultsError('forged'))", "forged"),
}
NETWORKS = {
    "images through data": "images.data.zero_()",
    "images through numpy": "images.numpy()[:] = 0",
}
OBSERVERS = {
    "record": ("epoch", "record.__dict__['train_loss'] = 0.0; record.metrics.update(top1=100.0); record.terms.clear()"),
    "result": ("finished", "result.metrics.update(top1=100.0); result.data.__dict__['fingerprint'] = ''"),
    "settings": ("started", "[t.settings.update(temperature=9.0) for t in plan.trials if 'temperature' in t.settings]"),
    "data identity": ("started", "[t.data.update(name='mine') for t in plan.trials]"),
    "environment": ("started", "run.environment.update(torch='9')"),
    "trial": ("trial", "object.__setattr__(trial, 'seed', 9)"),
}


@dataclass(frozen=True)
class Fault:
    """What misbehaves, where, and what is said of it: None where the faulty one itself may end well."""

    name: str
    where: str
    code: str
    message: str | None


def _faults() -> list[Fault]:
    found = [Fault(f"{name} left changed", "forward", code, said) for name, (code, said) in STATES.items()]
    places = ["init", "setup", "after_step", "predict", "network", "build", "at_import"]
    found += [Fault(f"dtype left changed in {place}", place, *STATES["default dtype"]) for place in places]
    found += [Fault(f"function mode left changed in {place}", place, *STATES["function mode"]) for place in places[1:3]]
    found += [Fault(f"{name} used", "forward", code, None) for name, code in HARMLESS_STATES.items()]
    found += [Fault(f"{name} overwritten", "forward", code, None) for name, code in WRITES.items()]
    found += [Fault(f"{name} overwritten", "setup", code, None) for name, code in SETUP_WRITES.items()]
    found.append(Fault("teacher overwritten afterwards", "after_step", "teacher.logits.data.zero_()", None))
    found += [Fault(f"{name} overwritten", "network", code, None) for name, code in NETWORKS.items()]
    found += [Fault(f"{name} replaced", "forward", code, said) for name, (code, said) in PATCHES.items()]
    code, said = PATCHES["cross_entropy"]
    found += [
        Fault(f"cross_entropy replaced in {p}", p, code, said) for p in ("at_import", "init", "predict", "network")
    ]
    found.append(Fault("cross_entropy replaced later", "forward", f"if self.calls == 4: {code}", said))
    found += [Fault(f"{name} raised", "forward", f"raise {code}", said) for name, (code, said) in ERRORS.items()]
    raising = {
        "setup": "GeneratorExit",
        "predict": "BaseException",
        "after_step": "a bad __str__",
        "network": "ResultsError",
    }
    for place, name in raising.items():
        found.append(Fault(f"{name} raised in {place}", place, f"raise {ERRORS[name][0]}", ERRORS[name][1]))
    found += [Fault(f"{name} predicted", "predict", code, said) for name, (code, said) in PREDICTIONS.items()]
    found += [Fault(f"{name} as terms", "forward", code, said) for name, (code, said) in TERMS.items()]
    for name, (code, said) in EXTRA.items():
        more = f"def get_extra_state(self): return {code}\n    def set_extra_state(self, state): pass"
        found.append(Fault(f"{name} as extra state", "more", more, said))
    for name, (place, code) in OBSERVERS.items():
        found.append(Fault(f"{name} overwritten by an observer", place, code, None))
    for name in ("default dtype", "forward hooks", "working directory", "stderr"):
        found.append(Fault(f"{name} left changed by an observer", "epoch", *STATES[name]))
    found.append(Fault("cross_entropy replaced by an observer", "trial", *PATCHES["cross_entropy"]))
    for name in ("GeneratorExit", "KeyboardInterrupt", "a bad __str__"):
        code, said = ERRORS[name]
        found.append(Fault(f"{name} raised by an observer", "epoch", f"raise {code}", said.partition(":")[0]))
    return found


FAULTS = _faults()


@dataclass(frozen=True)
class Outcome:
    """What a run with a fault came to."""

    innocent: Mapping[str, Any] | None
    """All that is recorded of the innocents; None where they are not done."""
    guilty: list[str]
    """Why the faulty trials failed, or the run was refused; and what was warned of."""
    problem: str = ""


def inject(fault: Fault | None, folder: Path, output: Path) -> Outcome:
    """Run a small suite with a fault (or none) beside the innocents. Teachers are shared through ``output``."""
    places = dict.fromkeys(("init", "setup", "forward", "after_step", "predict", "more"), "pass")
    hooks = dict.fromkeys(("started", "trial", "epoch", "finished"), "pass")
    network = {"network": "pass", "build": "pass", "more": "pass"}
    plugins, pairs, methods = ["steady.py"], "", ""
    (folder / "steady.py").write_text(COMMON + STEADY)
    if fault is not None:
        plugins.append("faulty.py")
        if fault.where in hooks:
            text = OBSERVER.format(**{**hooks, fault.where: fault.code})
        elif fault.where in ("network", "build"):
            text = NETWORK.format(**{**network, fault.where: fault.code})
            pairs = '[[pairs]]\nteacher = "resnet8"\nstudent = "faulty-net"\n'
        else:
            at_import = fault.code if fault.where == "at_import" else ""
            text = FAULTY.format(**{**places, fault.where: fault.code, "at_import": at_import})
            methods = '[[methods]]\nname = "faulty"\n'
        (folder / "faulty.py").write_text(COMMON + text)
    suite = folder / "suite.toml"
    suite.write_text(SUITE.format(name=folder.name, plugins=plugins, pairs=pairs, methods=methods))
    warned: list[str] = []
    options = {"output": output, "report_dir": folder / "reports", "device": "cpu", "observers": []}
    try:
        results = run_suite(suite, warn=warned.append, **options)
    except KdbenchError as error:
        refused = not (output / folder.name / "plan.json").exists()
        return Outcome(None, [str(error), *warned], "refused" if refused else f"run ended: {error}")
    except BaseException as error:  # noqa: BLE001 - that is what is tested
        return Outcome(None, warned, f"run ended: {type(error).__name__}")
    records = {}
    for trial in results.plan.trials:
        if trial.student == "resnet8" and trial.label in {"steady", "kd"}:
            records[trial.label] = _recorded(output / folder.name, trial.label)
    guilty = [trial.reason for trial in results.plan.trials if trial.status == "failed"]
    problem = ", ".join(f"{label} is not done" for label, record in records.items() if record is None)
    return Outcome(None if problem else records, guilty + warned, problem)


def _recorded(folder: Path, label: str) -> dict[str, Any] | None:
    [place] = folder.glob(f"resnet8-resnet8-{label}-seed0-*")
    if not (place / "result.json").exists():
        return None
    result = json.loads((place / "result.json").read_text())
    result["environment"].pop("git_commit", None)  # somebody may commit meanwhile
    trial = json.loads((place / "trial.json").read_text())
    epochs = [json.loads(line) for line in (place / "epochs.jsonl").read_text().splitlines()]
    timed = {"seconds", "started", "finished", "cost", "id", "suite", "checksum", "files"}
    return {
        "weights": load_file(place / "student.safetensors"),
        "records": [{k: v for k, v in record.items() if k not in timed} for record in (result, trial, *epochs)],
    }


def same(a: Mapping[str, Any], b: Mapping[str, Any]) -> bool:
    """Bit by bit."""
    return a.keys() == b.keys() and all(
        a[label]["records"] == b[label]["records"]
        and a[label]["weights"].keys() == b[label]["weights"].keys()
        and all(torch.equal(value, b[label]["weights"][key]) for key, value in a[label]["weights"].items())
        for label in a
    )


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(autouse=True)
def _no_report(monkeypatch):
    # A page takes longer than the training here, and is none of this test's business.
    monkeypatch.setattr("kdbench.report.render.render", lambda *_, **__: None)


@pytest.fixture(scope="module")
def innocent(tmp_path_factory: pytest.TempPathFactory, output: Path) -> Mapping[str, Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("kdbench.report.render.render", lambda *_, **__: None)
        outcome = inject(None, tmp_path_factory.mktemp("innocent"), output)
    assert outcome.innocent is not None
    return outcome.innocent


@pytest.mark.parametrize(
    "fault", FAULTS[:: 1 if os.environ.get("KDBENCH_ALL_FAULTS") else 5], ids=lambda fault: fault.name
)
def test_a_misbehaving_plugin_moves_no_other_trial(fault, innocent, tmp_path_factory, output, monkeypatch):
    folder = tmp_path_factory.mktemp("fault")
    with (folder / "stderr").open("w") as stderr:
        monkeypatch.setattr(sys, "stderr", stderr)
        outcome = inject(fault, folder, output)
    if fault.where != "at_import":
        assert outcome.problem == ""
        assert same(outcome.innocent, innocent)
    if fault.message is None:
        assert outcome.guilty == []
    else:
        assert any(fault.message in why for why in outcome.guilty), outcome.guilty
