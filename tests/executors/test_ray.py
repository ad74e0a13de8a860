"""A suite on a Ray cluster of two nodes, of which one dies."""

from __future__ import annotations

import json
import sys
import threading
import time

import pytest
from safetensors.torch import load_file

from kdbench.errors import KdbenchError, SuiteError
from kdbench.results import SuiteFolder
from kdbench.run import run_suite
from kdbench.status import Status

EPOCHS = 30
SUITE = {
    "name": "tiny",
    "question": "Does it run?",
    "seeds": [0, 1, 2],
    # Cohorts that may begin at the same time.
    "teacher_seeds": "single",
    "checkpoint_every": 1,
    "data": {"name": "digits", "train_limit": 400, "test_limit": 50},
    "recipe": {"epochs": EPOCHS},
    "pairs": [{"teacher": "resnet8", "student": "resnet8"}],
    "methods": [{"name": "none"}, {"name": "kd"}],
}


def test_without_ray_its_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(KdbenchError, match=r"^the executor ray needs Ray: pip install 'kdbench\[ray\]'$"):
        run_suite(SUITE, executor="ray")


def test_wrong_settings_are_named():
    pytest.importorskip("ray", reason="needs kdbench[ray]")
    with pytest.raises(SuiteError, match=r"executor\.cpus: "):
        run_suite(SUITE, executor={"name": "ray", "cpus": -1})


@pytest.fixture
def cluster(monkeypatch):
    ray = pytest.importorskip("ray", reason="needs kdbench[ray]")
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("RAY_DEDUP_LOGS", "0")
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    yield made
    ray.shutdown()
    made.shutdown()


@pytest.mark.parametrize("shared", [True, False])
def test_the_suite_ends_complete_when_a_node_dies(cluster, tmp_path, shared):
    doomed = cluster.add_node(num_cpus=1)
    cluster.wait_for_nodes()
    options = {"device": "cpu", "report_dir": tmp_path / "reports", "observers": []}

    def kill_when_both_train() -> None:
        deadline = time.monotonic() + 180
        while time.monotonic() < deadline:
            begun = {(trial.description.seed, len(trial.epochs)) for trial in SuiteFolder(tmp_path / "runs", "tiny")}
            if len({seed for seed, epochs in begun if 0 < epochs < EPOCHS}) == 2:
                cluster.remove_node(doomed, allow_graceful=False)
                return
            time.sleep(0.02)

    killer = threading.Thread(target=kill_when_both_train)
    killer.start()
    said: list[str] = []
    remote = {"name": "ray", "address": cluster.address, "shared_folder": shared}
    results = run_suite(SUITE, output=tmp_path / "runs", executor=remote, warn=said.append, **options)
    killer.join()
    owners: dict[str, set[str]] = {}
    for claim in (tmp_path / "runs/.claims/tiny/trials").iterdir():
        owners.setdefault(claim.name.rpartition(".")[0], set()).add(json.loads(claim.read_text())["owner"] or "")
    # The dead node's trials had another owner then; without a shared folder, the server owns all of them.
    assert sorted(len(found - {""}) for found in owners.values()) == ([1, 1, 1, 1, 2, 2] if shared else [1] * 6)
    assert [trial.status for trial in results.plan.trials] == [Status.DONE] * 6, said
    assert (results.report / "index.html").exists()
    one = run_suite(SUITE, output=tmp_path / "one", **options)
    for trial in results.plan.trials:
        ours, theirs = (load_file(run.folder.trial(trial.id).weights) for run in (results, one))
        assert all(ours[key].equal(theirs[key]) for key in theirs)
        assert results.folder.trial(trial.id).damage(thorough=True) == ""
