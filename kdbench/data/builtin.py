"""The data sets that kdbench brings, offered through the hook that any plugin uses."""

from __future__ import annotations

from collections.abc import Sequence

from kdbench.hookspecs import DatasetSpec, hookimpl


@hookimpl
def kdbench_datasets() -> Sequence[DatasetSpec]:
    """The built-in data sets; each class is imported when it is used."""
    return [
        DatasetSpec(
            "digits",
            "kdbench.data.digits:Digits",
            reference="Alpaydin and Kaynak 1998, https://doi.org/10.24432/C50P49",
            summary="1,797 handwritten digits of 8x8 pixels, bundled with scikit-learn",
        ),
    ]
