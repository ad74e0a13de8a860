"""Three runs of one suite at the same time write to one MLflow server with a PostgreSQL database."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

SUITE = """
name = "tiny"
question = "Does it run?"
seeds = [0, 1, 2, 3, 4, 5]
checkpoint_every = 1

[data]
name = "digits"
train_limit = 300
test_limit = 50

[recipe]
epochs = 5

[[pairs]]
teacher = "resnet8"
student = "resnet8"

[[methods]]
name = "none"
[[methods]]
name = "kd"
"""
RUNS = 3


def test_each_step_of_each_trial_is_there_once(postgres: str, postgres_server: Any, tmp_path: Path) -> None:
    import psycopg

    (tmp_path / "tiny.toml").write_text(SUITE)
    command = [sys.executable, "-m", "kdbench", "run", "tiny.toml", "--device", "cpu", "--wait"]
    runs = [
        subprocess.Popen(
            [*command, "--tracking-uri", postgres_server.uri],
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        for _ in range(RUNS)
    ]
    for one in runs:
        said, _ = one.communicate(timeout=300)
        assert one.returncode == 0, said
        assert "MLflow" not in said, said
    with psycopg.connect(postgres) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT run_uuid, value FROM tags WHERE key = 'kdbench.trial_id'")
        trials = dict(cursor.fetchall())
        cursor.execute("SELECT run_uuid, step FROM metrics WHERE key = 'train_loss'")
        steps: dict[str, list[int]] = {}
        for run, step in cursor.fetchall():
            steps.setdefault(run, []).append(step)
        cursor.execute("SELECT run_uuid FROM tags WHERE key = 'kdbench.invocation'")
        parents = {run for (run,) in cursor.fetchall()}
        cursor.execute("SELECT status, count(*) FROM runs GROUP BY status")
        assert dict(cursor.fetchall()).keys() == {"FINISHED"}
    assert len(trials) == len(set(trials.values())) == 12
    assert {run: sorted(found) for run, found in steps.items()} == {key: [1, 2, 3, 4, 5] for key in trials}
    assert 1 <= len(parents) <= RUNS
