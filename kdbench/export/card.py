"""The model card of an exported student: description, accuracy and training.

Its front matter follows the Hugging Face Hub (https://huggingface.co/docs/hub/model-cards).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import jinja2
from huggingface_hub import EvalResult, ModelCardData

from kdbench.discovery import Registry
from kdbench.environment import describe_environment
from kdbench.export.find import FinishedTrial
from kdbench.export.formats import Format
from kdbench.export.student import Student

TASK = "image-classification"


def model_card(
    found: FinishedTrial,
    student: Student,
    to: Format,
    file: str,
    header: Mapping[str, Any],
    registry: Registry,
) -> str:
    """The card, in Markdown, of the student of ``found`` in ``file``."""
    trial, result = found.trial, found.result
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("kdbench.export"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        # Markdown, not HTML.
        autoescape=False,
    )
    environment.filters["plain"] = _plain
    return environment.get_template("card.md.j2").render(
        front_matter=_front_matter(found),
        trial=trial,
        result=result,
        data=found.data,
        teacher=result.teacher,
        measured=[(metric, result.metrics[name]) for name, metric in found.metrics.items() if name in result.metrics],
        header=header,
        to=to,
        file=file,
        student=student,
        paper=registry.method(trial.method).reference,
        trained_with=result.environment,
        exported_with=describe_environment(),
    )


def _front_matter(found: FinishedTrial) -> str:
    trial, result, data = found.trial, found.result, found.data
    accuracy = EvalResult(
        task_type=TASK,
        dataset_type=data.name,
        dataset_name=data.name,
        dataset_split="test",
        metric_type="accuracy",
        metric_name="top-1 accuracy in percent",
        metric_value=result.top1,
    )
    return ModelCardData(
        model_name=found.id,
        library_name="kdbench",
        pipeline_tag=TASK,
        tags=["knowledge-distillation", trial.method],
        metrics=["accuracy"],
        eval_results=[accuracy],
    ).to_yaml()


def _plain(value: Any) -> str:
    """A setting as text for a table cell."""
    text = value if isinstance(value, str) else json.dumps(value)
    return text.replace("|", "\\|")
