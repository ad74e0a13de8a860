"""The ImageNet suite, streamed from a folder of a few generated photographs."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision

from kdbench.errors import KdbenchError
from kdbench.results import TrialResult
from kdbench.run import Results, run_suite

SHORTENED = (
    "data.size=32",
    "recipe.augmentation.random_resized_crop.size=32",
    "recipe.epochs=1",
    "recipe.drops=[]",
    "recipe.batch_size=3",
    "methods.ab.boundary_epochs=1",
    "pairs.2.recipe.augmentation.random_resized_crop.size=32",
    "pairs.2.recipe.epochs=6",
    "pairs.2.recipe.batch_size=6",
)


def run(tmp_path: Path, root: Path, *overrides: str, **options: Any) -> Results:
    return run_suite(
        "imagenet",
        overrides=[f"data.root={root}", *SHORTENED, *overrides],
        device="cpu",
        output=tmp_path / "runs",
        report_dir=tmp_path / "reports",
        observers=[],
        **options,
    )


def weights(path: Path, network: torch.nn.Module) -> Path:
    torch.save(network.state_dict(), path)
    return path


def outcomes(results: Results) -> dict[str, TrialResult]:
    found = {}
    for trial in results.plan.trials:
        result = results.folder.trial(trial.id).result
        if result is not None:
            assert result.done
            assert math.isfinite(result.metrics["nll"])
            found[trial.label] = result
    return found


def test_the_first_pair_trains_from_the_stream(tmp_path: Path, photographs: Path) -> None:
    file = weights(tmp_path / "resnet34.pth", torchvision.models.resnet34(num_classes=2))
    warnings: list[str] = []
    results = run(
        tmp_path,
        photographs,
        f'teachers."torchvision:resnet34".weights={file}',
        "data.workers=1",
        pairs=["torchvision:resnet34:torchvision:resnet18"],
        methods=["kd", "ab"],
        allow_teacher_mismatch=True,
        warn=warnings.append,
    )
    found = outcomes(results)
    assert list(found) == ["kd", "ab"]
    # Noise teaches a network nothing: it guesses one of two classes.
    assert warnings == [
        f"teacher torchvision:resnet34: reaches {found['kd'].teacher.top1:.2f} % on the test set, "
        "the suite expects 73.31 ± 0.50 %"
    ]
    assert found["kd"].data.name == "imagenet"


def test_the_transformer_trains_by_its_own_recipe(tmp_path: Path, photographs: Path) -> None:
    file = weights(tmp_path / "resnet18.pth", torchvision.models.resnet18(num_classes=2))
    results = run(
        tmp_path,
        photographs,
        # In place of the RegNet, which has 80 million parameters.
        "pairs.2.teacher=torchvision:resnet18",
        f'teachers={{"torchvision:resnet18" = {{ weights = "{file}" }}}}',
        "data.workers=0",
        pairs=["torchvision:resnet18:timm:deit_tiny_distilled_patch16_224"],
        methods=["deit"],
    )
    [deit] = outcomes(results).values()
    epochs = results.folder.trial(deit.id).epochs
    # Five epochs of warm-up to 1e-3, one of cosine.
    assert [record.lr for record in epochs] == pytest.approx([1e-3 * (i + 1e-3) / 5 for i in range(5)] + [1e-3])


def test_pretrained_weights_for_other_classes_are_refused(tmp_path: Path, photographs: Path) -> None:
    pair, message = (
        "torchvision:resnet34:torchvision:resnet18",
        "weights IMAGENET1K_V1 have 1000 classes, the data has 2",
    )
    warnings: list[str] = []
    results = run(tmp_path, photographs, pairs=[pair], methods=["none"], warn=warnings.append)
    # Other teachers' students could still be trained.
    assert warnings == [f"teacher torchvision:resnet34: torchvision:resnet34: {message}"]
    assert [(trial.pair, trial.label) for trial in results.failed] == [(pair, "none")]
    assert message in results.failed[0].reason


def test_a_teacher_that_is_not_what_the_suite_expects_stops_the_run(tmp_path: Path, photographs: Path) -> None:
    file = weights(tmp_path / "resnet34.pth", torchvision.models.resnet34(num_classes=2))
    given = f'teachers."torchvision:resnet34".weights={file}'
    with pytest.raises(KdbenchError) as caught:
        run(tmp_path, photographs, given, "data.workers=0", pairs=["torchvision:resnet34:torchvision:resnet18"])
    assert str(caught.value).startswith("teacher torchvision:resnet34: reaches ")
    assert str(caught.value).endswith(
        "the suite expects 73.31 ± 0.50 %; correct teachers.torchvision:resnet34 or pass --allow-teacher-mismatch"
    )
    assert not list((tmp_path / "runs" / "imagenet").glob("*/result.json"))
