from __future__ import annotations

import importlib
import inspect

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
