"""``kdbench export``."""

from __future__ import annotations

from typing import get_args

import pytest

from kdbench import cli
from kdbench.export import Format


@pytest.fixture
def kdbench(monkeypatch, tmp_path, capsys):
    """``kdbench("export", ...)`` in ``tmp_path``: exit code, output, errors."""

    def go(*arguments):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr("sys.argv", ["kdbench", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        return stop.value.code or 0, *capsys.readouterr()

    return go


def test_the_forms_are_those_that_can_be_written():
    assert [form.value for form in cli.students.Form] == list(get_args(Format))


def test_a_beginning_of_an_id_is_enough(kdbench, trained, tmp_path):
    name = trained.path("resnet8 deit").name
    # Without --to, safetensors are written.
    code, out, err = kdbench("export", "resnet14-resnet8-deit", "--output", trained.output)
    assert (code, err) == (0, "")
    assert out == f"student: {name}.safetensors\nmodel card: {name}.safetensors.md\n"
    assert (tmp_path / f"{name}.safetensors.md").is_file()


def test_an_onnx_program_is_written_without_noise(kdbench, trained, tmp_path):
    code, out, err = kdbench("export", trained.path("resnet8 vid"), "--to", "onnx", "--out", "a.onnx")
    assert (code, out, err) == (0, "student: a.onnx\nmodel card: a.onnx.md\n", "")


def test_out_is_a_folder_unless_it_ends_as_the_form_does(kdbench, trained, tmp_path):
    name = trained.path("resnet8 vid").name
    code, out, _ = kdbench("export", trained.path("resnet8 vid"), "--to", "safetensors", "--out", "new/folder")
    assert (code, out.splitlines()[0]) == (0, f"student: new/folder/{name}.safetensors")
    assert (tmp_path / "new/folder" / f"{name}.safetensors").is_file()
    code, _, err = kdbench("export", trained.path("resnet8 vid"), "--to", "safetensors", "--out", "student.pt")
    assert (code, "--out student.pt: a safetensors file must end in .safetensors" in err) == (2, True)


def test_an_unknown_trial_is_a_usage_error_in_one_line(kdbench, trained):
    code, out, err = kdbench("export", "resnet14-resnet8-vdi-seed0", "--to", "torch", "--output", trained.output)
    assert (code, out) == (2, "")
    assert err.startswith("kdbench: no trial 'resnet14-resnet8-vdi-seed0' in ")
    assert "did you mean 'resnet14-resnet8-vid-seed0-" in err
    assert "Traceback" not in err


def test_an_unknown_form_is_a_usage_error(kdbench, trained):
    code, _, err = kdbench("export", "resnet14", "--to", "tflite", "--output", trained.output)
    assert code == 2
    assert "'tflite' is not one of 'safetensors', 'torch', 'onnx'" in err
