from __future__ import annotations

import pytest
import torch

from kdbench.data.feed import evaluation_batch
from kdbench.engine.device import Precision, Stopwatch, choose_device, in_float32
from kdbench.errors import KdbenchError

CPU = torch.device("cpu")


@pytest.mark.parametrize("name", ["tpu", "cpu:1", "cuda:x", ""])
def test_unknown_devices_are_refused(name):
    with pytest.raises(KdbenchError, match=r"must be auto, cpu, cuda or cuda:N$"):
        choose_device(name)


def test_a_gpu_that_is_not_there_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(KdbenchError) as error:
        choose_device("cuda")
    assert str(error.value) == "--device cuda: this machine has 0 usable GPU(s); use cpu"
    assert choose_device("auto") == CPU


def test_auto_and_tf32_are_float32_on_a_cpu_and_bf16_is_obeyed():
    assert Precision.choose("auto", CPU).name == "float32"
    assert Precision.choose("tf32", CPU).name == "float32"
    with Precision.choose("bf16", CPU).autocast():
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.bfloat16
    with Precision.choose("float32", CPU).autocast():
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32


@pytest.fixture
def flags():
    """Torch's flags for GPUs, which hold for the process; given back as they were."""
    convolutions, products = torch.backends.cudnn, torch.backends.cuda.matmul
    before = convolutions.allow_tf32, products.allow_tf32, convolutions.benchmark, convolutions.deterministic
    yield
    convolutions.allow_tf32, products.allow_tf32, convolutions.benchmark, convolutions.deterministic = before
    torch.use_deterministic_algorithms(False)


@pytest.mark.usefixtures("flags")
@pytest.mark.parametrize("name", ["float32", "tf32", "bf16"])
def test_only_convolutions_are_ever_tf32(name):
    torch.backends.cudnn.allow_tf32 = name != "tf32"
    torch.backends.cuda.matmul.allow_tf32 = True
    Precision(torch.device("cuda", 0), name).prepare()
    assert torch.backends.cudnn.allow_tf32 is (name == "tf32")
    assert torch.backends.cuda.matmul.allow_tf32 is False


def test_on_a_gpu_auto_is_bf16():
    assert Precision.choose("auto", torch.device("cuda", 0)).name == "bf16"


class Event:
    """As CUDA's: it tells no time unless both were recorded."""

    clock = 0.0

    def __init__(self, enable_timing: bool) -> None:
        self.time: float | None = None

    def record(self) -> None:
        Event.clock += 1000.0
        self.time = Event.clock

    def synchronize(self) -> None:
        pass

    def elapsed_time(self, end: Event) -> float:
        if self.time is None or end.time is None:
            raise ValueError("Both events must be recorded before calculating elapsed time.")
        return end.time - self.time


def test_on_a_gpu_a_step_that_fails_is_not_counted_and_spoils_nothing(monkeypatch):
    monkeypatch.setattr(torch.cuda, "Event", Event)
    watch = Stopwatch(torch.device("cuda", 0))
    watch.start()  # and never stopped
    assert watch.read() == 0.0
    for _ in range(2):
        watch.start()
        watch.stop()
    watch.start()
    assert watch.read() == 2.0
    assert watch.read() == 0.0


def test_a_stopwatch_sums_and_starts_over():
    watch = Stopwatch(CPU)
    for _ in range(3):
        watch.start()
        watch.stop()
    assert watch.read() > 0
    assert watch.read() == 0


def test_deterministic_training_chooses_no_algorithm_by_speed(flags):
    gpu = Precision(torch.device("cuda", 0), "bf16")
    gpu.prepare()
    assert (torch.backends.cudnn.benchmark, torch.are_deterministic_algorithms_enabled()) == (True, False)
    gpu.prepare(deterministic=True)
    assert (torch.backends.cudnn.benchmark, torch.are_deterministic_algorithms_enabled()) == (False, True)
    gpu.prepare()
    assert (torch.backends.cudnn.benchmark, torch.are_deterministic_algorithms_enabled()) == (True, False)


def test_what_is_measured_is_not_in_tf32(flags):
    Precision(torch.device("cuda", 0), "tf32").prepare()
    assert torch.backends.cudnn.allow_tf32
    with in_float32(torch.device("cuda", 0)):
        assert not torch.backends.cudnn.allow_tf32
    assert torch.backends.cudnn.allow_tf32


@pytest.mark.parametrize(
    ("shape", "device", "expected"),
    [((3, 32, 32), "cpu", 500), ((3, 32, 32), "cuda", 2500), ((3, 64, 64), "cuda", 625), ((3, 224, 224), "cuda", 500)],
)
def test_images_in_a_batch_of_an_evaluation(shape, device, expected):
    assert evaluation_batch(shape, torch.device(device)) == expected
