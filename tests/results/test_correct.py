"""One bit for each test image: what is written is read, and what cannot be is refused."""

from __future__ import annotations

import numpy as np
import pytest

from kdbench.errors import ResultsError
from kdbench.results import Cost, DataUsed, Environment, TrialFolder, TrialRecord, read_correct, write_correct
from kdbench.status import Status

TRIAL = TrialRecord(id="a", teacher="t", student="s", method="m", label="m", seed=0)


@pytest.fixture
def finish(tmp_path):
    """``finish(correct, top1)``: a finished trial of so many test images."""

    def go(correct, top1=None, status=Status.DONE):
        folder = TrialFolder(tmp_path / "suite" / "a", "a")
        folder.begin(TRIAL)
        folder.weights.write_bytes(b"weights")
        write_correct(folder.correct, correct)
        share = 100 * int(correct.sum()) / len(correct)
        folder.finish(
            id="a",
            status=status,
            epoch=3,
            metrics={"top1": share if top1 is None else top1} if status is Status.DONE else {},
            cost=Cost(seconds=1.0, teacher_seconds=0.0, extra_epochs=0),
            data=DataUsed(name="digits", fingerprint="f", n_test=len(correct)),
            environment=Environment(device="cpu"),
            finished="2026-01-01T00:00:00+00:00",
        )
        return folder

    return go


@pytest.mark.parametrize("images", [1, 7, 8, 9, 10_000])
def test_what_is_written_is_read_in_order(finish, images):
    correct = np.random.default_rng(images).random(images) < 0.7
    folder = finish(correct)
    found = read_correct(folder)
    assert (found.dtype, found.shape) == (bool, (images,))
    np.testing.assert_array_equal(found, correct)
    assert folder.result.files.keys() == {"trial.json", "student.safetensors", "correct.npy"}


def test_the_first_image_is_the_highest_bit(finish):
    folder = finish(np.array([True, False, False, False, False, False, False, False, True, True]))
    assert list(np.load(folder.correct)) == [0b10000000, 0b11000000]


def test_ten_thousand_images_take_little_more_than_a_kilobyte(finish):
    assert finish(np.ones(10_000, dtype=bool)).correct.stat().st_size == 128 + 1250


@pytest.mark.parametrize(
    ("damage", "what"),
    [
        (lambda place: place.unlink(), "correct.npy is missing"),
        (lambda place: place.write_bytes(place.read_bytes()[:-1]), "correct.npy does not match its checksum"),
        (
            lambda place: place.write_bytes(place.read_bytes()[:-1] + bytes([place.read_bytes()[-1] ^ 1])),
            "correct.npy does not match its checksum",
        ),
    ],
    ids=["missing", "truncated", "a bit"],
)
def test_a_damaged_file_is_damage_of_the_trial(finish, damage, what):
    folder = finish(np.ones(8, dtype=bool))
    assert (folder.damage(), folder.damage(thorough=True)) == ("", "")
    damage(folder.correct)
    assert (folder.result, folder.damage(), read_correct(folder)) == (None, what, None)


def test_results_without_the_file_are_valid(finish):
    folder = finish(np.ones(8, dtype=bool))
    fields = dict(folder.recorded)
    folder.correct.unlink()
    folder.finish(**fields)
    assert folder.result.top1 == 100.0
    assert (folder.damage(), read_correct(folder)) == ("", None)


def test_a_new_attempt_removes_the_bits_of_the_last_one(finish):
    folder = finish(np.ones(8, dtype=bool))
    folder.begin(TRIAL)
    assert not folder.correct.exists()


def test_unfinished_trials_have_none(tmp_path):
    assert read_correct(TrialFolder(tmp_path / "a", "a")) is None


def test_bits_that_contradict_the_result_are_refused(finish):
    folder = finish(np.ones(8, dtype=bool), top1=87.5)
    with pytest.raises(ResultsError) as caught:
        read_correct(folder)
    assert str(caught.value) == f"{folder.correct}: 8 of 8 images are correct, but top1 is 87.5"


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda place: np.save(place, np.zeros(2, dtype=np.uint8)), "has uint8 of shape (2,), which are not 8 bits"),
        (lambda place: np.save(place, np.zeros(8, dtype=bool)), "has bool of shape (8,), which are not 8 bits"),
        (lambda place: place.write_bytes(b"no array"), "cannot be read: "),
    ],
)
def test_files_of_another_kind_are_refused(finish, write, message):
    folder = finish(np.ones(8, dtype=bool))
    write(folder.correct)
    folder.finish(**dict(folder.recorded))
    with pytest.raises(ResultsError) as caught:
        read_correct(folder)
    assert str(caught.value).startswith(f"{folder.correct}: {message}")
