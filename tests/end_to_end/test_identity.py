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
    """``plan("tiny.toml")``: the planned trials, with ``site`` on the path; a new process imports what is there now."""

    def go(suite):
        path = os.pathsep.join([str(tmp_path / "site"), os.environ.get("PYTHONPATH", "")])
        done = subprocess.run(
            command("plan", suite, "--json"),
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
    pairs = [("resnet8", "resnet8"), ("resnet8", "tiny-net"), ("tiny-net", "resnet8")]
    tables = "".join(f'[[pairs]]\nteacher = "{teacher}"\nstudent = "{student}"\n' for teacher, student in pairs)
    text = SUITE.partition("[[pairs]]")[0] + tables + '[[methods]]\nname = "kd"\n[[methods]]\nname = "tiny-loss"\n'
    (tmp_path / "all.toml").write_text(text)
    (tmp_path / "data.toml").write_text(text.replace('"digits"', '"tiny-data"'))

    def ids(suite):
        return {(t["teacher"], t["student"], t["method"]): t["id"] for t in plan(suite)}

    def changed(before, after):
        return {key for key in before if before[key] != after[key]}

    reinstall()
    first, data = ids("all.toml"), ids("data.toml")
    reinstall(**{"scale.py": "SCALE = 2.0  # no other change"})
    second = ids("all.toml")
    assert changed(first, second) == {(*pair, "tiny-loss") for pair in pairs}
    net = PACKAGE["net.py"].replace("depth=8", "depth=14")
    reinstall(**{"scale.py": "SCALE = 2.0", "net.py": net})
    assert changed(second, ids("all.toml")) == {(*pair, method) for pair in pairs[1:] for method in ("kd", "tiny-loss")}
    reinstall(**{"images.py": PACKAGE["images.py"].replace("pass", "flipped = True")})
    assert changed(data, ids("data.toml")) == set(data)


def test_a_comment_a_docstring_a_label_and_a_teachers_nickname_change_no_trial(tmp_path, kdbench):
    def planned():
        return json.loads(kdbench("plan", suite, "--json").stdout)["trials"]

    loss, suite = tmp_path / "loss.py", tmp_path / "tiny.toml"
    loss.write_text(LOCAL)
    text = SUITE.replace("seeds", 'plugins = ["loss.py"]\nseeds') + '[[methods]]\nname = "mine"\n'
    suite.write_text(text)
    (before,) = planned()
    loss.write_text(LOCAL.replace("A loss", "A fine loss").replace("    def", "    # Equation 3.\n    def"))
    text = text.replace('teacher = "resnet8"', 'teacher = "big"') + '[teachers.big]\nmodel = "resnet8"\n'
    suite.write_text(text.replace('name = "mine"', 'name = "mine"\nlabel = "cross-entropy"'))
    (renamed,) = planned()
    assert (renamed["id"], renamed["label"], renamed["teacher"]) == (before["id"], "cross-entropy", "big")
    assert renamed["id"].startswith("resnet8-resnet8-mine-seed0-")
