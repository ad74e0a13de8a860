from __future__ import annotations

import importlib
import inspect
import subprocess
import sys

from kdbench.data.builtin import kdbench_datasets


def test_every_data_set_can_be_imported_and_has_the_contract() -> None:
    specs = kdbench_datasets()
    assert [spec.name for spec in specs] == [
        "digits",
        "cifar10",
        "cifar100",
        "image_folder",
        "tiny_imagenet",
        "imagenet",
    ]
    for spec in specs:
        module, _, name = spec.target.partition(":")
        offered = getattr(importlib.import_module(module), name)
        assert callable(offered.facts)
        assert callable(offered.load)
        parameters = inspect.signature(offered).parameters.values()
        assert all(parameter.kind is parameter.KEYWORD_ONLY for parameter in parameters)
        assert spec.summary


def test_describing_a_data_set_loads_no_torch() -> None:
    modules = sorted({spec.target.partition(":")[0] for spec in kdbench_datasets()})
    code = f"import sys, {', '.join(modules)}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
