"""What makes a trial a new one, and what does not: by the ids that ``kdbench plan`` prints."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from textwrap import dedent

import pytest

PROJECT = """
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"

[project]
name = "kdbench-tiny-loss"
version = "1.0"

[project.entry-points.kdbench]
tiny = "tiny_loss"

[tool.hatch.build.targets.wheel]
packages = ["tiny_loss"]
"""

PACKAGE = {
    "__init__.py": """
        from kdbench.hookspecs import DatasetSpec, MethodSpec, ModelSpec, hookimpl

        @hookimpl
        def kdbench_methods():
            return [MethodSpec("tiny-loss", "tiny_loss.loss:Tiny")]

        @hookimpl
        def kdbench_models():
            return [ModelSpec("tiny-net", "tiny_loss.net:build")]

        @hookimpl
        def kdbench_datasets():
            return [DatasetSpec("tiny-data", "tiny_loss.images:Images")]
        """,
    "loss.py": """
        from kdbench.method import Method
        from tiny_loss.scale import SCALE

        class Tiny(Method):
            def forward(self, student, teacher, batch):
                return {"ce": (batch.cross_entropy(student.logits), SCALE)}
        """,
    "scale.py": "SCALE = 1.0",
    "net.py": """
        from kdbench.models.resnet import resnet

        def build(*, classes, image_shape):
            return resnet(depth=8, classes=classes, image_shape=image_shape)
        """,
    "images.py": """
        from kdbench.data.digits import Digits

        class Images(Digits):
            pass
        """,
}

SUITE = """
name = "tiny"
question = "Is it new?"
seeds = [0]

[data]
name = "digits"

[recipe]
epochs = 2

[[pairs]]
teacher = "resnet8"
student = "resnet8"
"""

LOCAL = '''
"""A loss."""

from kdbench.method import Method


class Mine(Method):
    name = "mine"

    def forward(self, student, teacher, batch):
        return {"ce": (batch.cross_entropy(student.logits), 1.0)}
'''


@pytest.fixture
def plan(tmp_path, command):
    """``plan("tiny.toml")``: the planned trials, with ``site`` on the path."""

    def go(suite, *arguments):
        path = os.pathsep.join([str(tmp_path / "site"), os.environ.get("PYTHONPATH", "")])
        done = subprocess.run(
            command("plan", suite, "--json", *arguments),
            cwd=tmp_path,
            capture_output=True,
            text=True,
            env={**os.environ, "PYTHONPATH": path},
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)["trials"]

    return go


@pytest.fixture
def reinstall(tmp_path):
    """``reinstall(**{"loss.py": text})``: install the distribution, not editable, under the same version."""

    def go(**changes):
        package = tmp_path / "project" / "tiny_loss"
        package.mkdir(parents=True, exist_ok=True)
        (tmp_path / "project" / "pyproject.toml").write_text(PROJECT)
        for name, text in {**PACKAGE, **changes}.items():
            (package / name).write_text(dedent(text))
        options = "-q --no-deps --no-build-isolation --no-index --disable-pip-version-check --upgrade --target site"
        line = [sys.executable, "-m", "pip", "install", *options.split(), "./project"]
        subprocess.run(line, cwd=tmp_path, check=True)

    return go


def test_a_reinstalled_loss_network_or_data_set_is_a_new_one(tmp_path, plan, reinstall):
    suites = {
        "method": SUITE + '[[methods]]\nname = "tiny-loss"\n',
        "student": SUITE.replace('student = "resnet8"', 'student = "tiny-net"') + '[[methods]]\nname = "kd"\n',
        "teacher": SUITE.replace('teacher = "resnet8"', 'teacher = "tiny-net"') + '[[methods]]\nname = "kd"\n',
        "data": SUITE.replace('name = "digits"', 'name = "tiny-data"') + '[[methods]]\nname = "kd"\n',
        "neither": SUITE + '[[methods]]\nname = "kd"\n',
    }
    for name, text in suites.items():
        (tmp_path / f"{name}.toml").write_text(text)

    def ids():
        return {name: plan(f"{name}.toml")[0]["id"] for name in suites}

    def changed(before, after):
        return {name for name in before if before[name] != after[name]}

    reinstall()
    first = ids()
    reinstall()
    assert changed(first, ids()) == set()
    reinstall(**{"scale.py": "SCALE = 2.0"})
    second = ids()
    assert changed(first, second) == {"method"}
    reinstall(**{"scale.py": "SCALE = 2.0", "net.py": PACKAGE["net.py"].replace("depth=8", "depth=14")})
    third = ids()
    assert changed(second, third) == {"student", "teacher"}
    reinstall(**{"images.py": PACKAGE["images.py"].replace("pass", "flipped = True")})
    assert changed(first, ids()) == {"data"}


def test_a_comment_a_docstring_and_a_label_change_no_trial(tmp_path, plan):
    loss, suite = tmp_path / "loss.py", tmp_path / "tiny.toml"
    loss.write_text(LOCAL)
    text = SUITE.replace("seeds", 'plugins = ["loss.py"]\nseeds') + '[[methods]]\nname = "mine"\n'
    suite.write_text(text)
    (before,) = plan(suite)
    loss.write_text(LOCAL.replace("A loss", "A fine loss").replace("    def", "    # Equation 3.\n    def"))
    assert plan(suite) == [before]
    suite.write_text(text + 'label = "cross-entropy"\n')
    (renamed,) = plan(suite)
    assert (renamed["id"], renamed["label"]) == (before["id"], "cross-entropy")
    assert renamed["id"].startswith("resnet8-resnet8-mine-seed0-")
    loss.write_text(LOCAL.replace("1.0", "2.0"))
    (other,) = plan(suite)
    assert other["id"] != before["id"]


def test_a_teachers_nickname_changes_no_trial(tmp_path, plan):
    suite = tmp_path / "tiny.toml"
    suite.write_text(SUITE + '[[methods]]\nname = "kd"\n')
    (before,) = plan(suite)
    text = SUITE.replace('teacher = "resnet8"', 'teacher = "big"')
    suite.write_text(text + '[[methods]]\nname = "kd"\n[teachers.big]\nmodel = "resnet8"\n')
    (after,) = plan(suite)
    assert (after["id"], after["teacher"]) == (before["id"], "big")
