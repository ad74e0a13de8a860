"""Which test images a student classifies correctly: stored with real trials, merged, and missed where it is gone."""

from __future__ import annotations

import json

import numpy as np
import torch
from safetensors.torch import load_file

from kdbench.data.open import open_feed
from kdbench.data.splits import limit
from kdbench.opening import open_suite
from kdbench.results import SuiteFolder, read_correct, write_json


def test_of_students_and_teachers_they_are_the_predictions_of_the_stored_weights(write_suite, run, tmp_path):
    suite = write_suite("none", "kd")
    results = run(suite)
    resolver = open_suite(suite).resolver
    arrays = limit(resolver.load(), **resolver.limits)
    feed = open_feed(arrays, resolver.facts, augmentation=(), batch_size=64, seed=0, device=torch.device("cpu"))
    [teacher] = results.plan.teachers
    places = [results.folder.teacher(teacher.key), *(results.folder.trial(trial.id) for trial in results.plan.trials)]
    for place in places:
        network = resolver.network("resnet8")
        network.load_state_dict(load_file(place.weights))
        network.eval()
        with torch.no_grad():
            classes = torch.cat([network(images)["logits"].argmax(1) for images, _ in feed.evaluate("test")])
        found = read_correct(place)
        # In the order of the data set.
        np.testing.assert_array_equal(found, classes.numpy() == arrays.test.labels)
        assert 100 * found.sum() / 50 == place.result.top1


def test_a_trial_whose_bits_are_gone_is_trained_again_and_an_earlier_result_is_not(write_suite, run, kdbench, watch):
    suite = write_suite("none", "kd")
    results = run(suite)
    none, kd = (results.folder.trial(trial.id) for trial in results.plan.trials)
    before = read_correct(none)
    none.correct.unlink()
    # As a version wrote it that did not store the bits.
    record = json.loads((kd.path / "result.json").read_text())
    del record["checksum"], record["files"]["correct.npy"]
    kd.correct.unlink()
    write_json(kd.path / "result.json", record)
    shown = kdbench("plan", suite).stdout
    assert "damaged: correct.npy is missing" in shown
    assert "2 trials (1 pending, 1 done)" in shown
    run(suite)
    assert [heard for heard in watch.heard if heard[0] == "started"] == [("started", "none")]
    np.testing.assert_array_equal(read_correct(none), before)
    assert read_correct(kd) is None


def test_a_merge_copies_them(write_suite, run, kdbench, tmp_path):
    results = run(write_suite("none"))
    assert kdbench("merge", "runs", "--into", "all").returncode == 0
    [trial] = results.plan.trials
    copied = SuiteFolder(tmp_path / "all", "tiny")
    np.testing.assert_array_equal(read_correct(copied.trial(trial.id)), read_correct(results.folder.trial(trial.id)))
    assert read_correct(copied.teacher(trial.teacher.key)) is not None
