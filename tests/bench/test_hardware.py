from __future__ import annotations

import json

import pytest
import torch

from kdbench import machine
from kdbench.bench import hardware

CPU = torch.device("cpu")


def test_facts_are_those_of_torch():
    facts = hardware.facts(CPU)
    assert facts["device"] == "cpu"
    assert facts["threads"] == torch.get_num_threads()
    assert facts["cpu_capability"] == torch.backends.cpu.get_cpu_capability()
    assert facts["cuda"] == torch.version.cuda
    assert facts["cpu"] == machine.cpu_model() != ""
    assert facts["blas"] in torch.__config__.show()
    json.dumps(facts)


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_rates_are_sizes_over_times(precision, monkeypatch):
    """With times of 0.5 seconds: 2 n^3 operations of a product, bytes that are read and written of a copy."""
    monkeypatch.setattr(hardware, "repeated", lambda action, *_: [action() is not None and 0.5])
    assert hardware.matrix_rates(CPU, precision, 0.0, side=10) == [4000.0]
    assert hardware.copy_rates(CPU, 0.0, size=100) == [400.0]
