"""Which test images the saved network classifies correctly: as its weights, read back, predict."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from kdbench.engine.cohort import Interrupted
from kdbench.results import DataUsed, Environment, read_correct
from kdbench.status import Status
from tests.engine.conftest import Labels, build

RECIPES = {
    "the last epoch": {},
    "the best on validation": {"selection": "validation", "lr": 2.0},
    "averaged weights": {"ema_decay": 0.9},
}


@pytest.fixture
def made_with(feed):
    data = DataUsed(name="digits", fingerprint="f", n_test=feed.n_evaluate)
    return {"data": data, "environment": Environment(device="cpu")}


def predicted(weights, feed):
    network = build()
    network.load_state_dict(load_file(weights))
    network.eval()
    with torch.no_grad():
        right = [network(images)["logits"].argmax(1) == labels for images, labels in feed.evaluate("test")]
    return torch.cat(right).numpy()


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_the_bits_are_the_predictions_of_the_saved_weights(learner, train, feed, heard, recipe):
    one = learner(Labels(), "a", epochs=5, **recipe)
    train(one, learner(Labels(), "b", epochs=5, seed=4))
    found = read_correct(one.folder)
    assert (found.dtype, found.shape) == (bool, (100,))
    np.testing.assert_array_equal(found, predicted(one.folder.weights, feed))
    assert found.sum() == heard.results["a"].top1  # of 100 images
    assert 0 < found.sum() < 100
    # 100 bits after numpy's header of 128 bytes.
    assert one.folder.correct.stat().st_size == 128 + 13
    if recipe.get("selection"):
        assert heard.results["a"].epoch < 5


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_after_an_interruption_the_bits_are_the_same(learner, train, recipe):
    whole = learner(Labels(), "a", "whole", epochs=4, **recipe)
    train(whole)
    for epochs_before in (1, 2, 3):
        stops = iter([False] * (epochs_before - 1) + [True])
        with pytest.raises(Interrupted):
            train(learner(Labels(), "a", f"after-{epochs_before}", epochs=4, **recipe), stop=stops.__next__)
        again = learner(Labels(), "a", f"after-{epochs_before}", epochs=4, **recipe)
        assert again.resume()
        train(again)
        np.testing.assert_array_equal(read_correct(again.folder), read_correct(whole.folder))


def test_a_best_epoch_from_an_earlier_checkpoint_has_no_bits(learner, train, heard):
    recipe = {"epochs": 4, "lr": 2.0, "selection": "validation"}
    whole = learner(Labels(), "a", "whole", **recipe)
    train(whole)
    best = heard.results["a"].epoch
    assert best < 4
    stops = iter([False] * (best - 1) + [True])
    with pytest.raises(Interrupted):
        train(learner(Labels(), "a", "halved", **recipe), stop=stops.__next__)
    again = learner(Labels(), "a", "halved", **recipe)
    assert again.resume()
    again.progress.best_correct = None
    train(again)
    assert (heard.results["a"].epoch, again.folder.result.done) == (best, True)
    assert (read_correct(again.folder), again.folder.correct.exists()) == (None, False)


def test_one_that_diverges_has_none_even_after_an_attempt_that_did_not(learner, train, heard):
    train(learner(Labels(), "a"))
    assert heard.results["a"].files.keys() >= {"correct.npy"}
    wild = learner(Labels(), "a", lr=1e18)
    train(wild)
    assert heard.results["a"].status is Status.DIVERGED
    assert "correct.npy" not in heard.results["a"].files
    assert (read_correct(wild.folder), wild.folder.correct.exists()) == (None, False)
