"""The batch on a real Slurm: GPU jobs apart, a cancelled job named and redone."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import mock_study
import pytest
import yaml
from mock_study import record, runs
from slurm_cluster import WANTED, Cluster

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not WANTED, reason="needs MEDSTUDY_SLURM=1, root, munge and slurm-wlm; writes /etc/slurm"),
]
#: The node is small; it has no accounting database, so squeue tells how jobs are.
EXTRA = ["--", "--slurm-init-seconds-before-status-checks", "2"]
#: Seconds; a job that can never start waits for ever.
PATIENCE = 240
EXTRA += ["--default-resources", "mem_mb=500", "runtime=5", "--until", "comparison"]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with Cluster(tmp_path_factory.mktemp("slurm")) as started:
        yield started


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A study of two tasks, one of which asks for the GPU; its jobs note when they ran and on what."""
    root = mock_study.make(tmp_path / "a study", seeds=(0, 1))
    study = root / "params" / "tiny" / "study.yaml"
    values = yaml.safe_load(study.read_text())
    study.write_text(yaml.safe_dump(values | {"tasks": {"text_classification": {"gpu": 1}, "clinical_triage": {}}}))
    for task in mock_study.TASKS:
        mock_study.task_notebook(root, task, NOTES)
    # jobs start here, and find this before the real one, which would see that Slurm's GPU is a stand-in
    (root / "torch.py").write_text("class cuda:\n    is_available = device_count = lambda: 1\n")
    return root


NOTES = """import time
begun = time.time()
while Path("hold").exists() or time.time() < begun + 2:
    time.sleep(0.1)
seen = [begun, time.time(), os.environ.get("CUDA_VISIBLE_DEVICES"), os.environ.get("SLURM_JOB_ID")]
(folder / "seen.json").write_text(json.dumps(seen))"""


def start(root: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "medstudy.batch.cli", "run", "params/tiny", "--profile", "slurm", "--threads", "1"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    # tests that run in the background of a script are deaf to Ctrl-C, and so would be what they start
    heard = {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)}
    return subprocess.Popen([*command, *EXTRA], cwd=root, **pipes, **heard)


def until(true: Callable[[], object], job: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 90
    while not true():
        assert job.poll() is None, job.communicate()
        assert time.monotonic() < deadline, "nothing happened in 90 seconds"
        time.sleep(0.2)


def seen(root: Path) -> dict[str, list]:
    found = (root / "results" / "tiny").glob("*/*/*/seen.json")
    return {f"{p.parts[-3]} {p.parts[-2]}": yaml.safe_load(p.read_text()) for p in found}


def test_every_job_goes_through_slurm_and_gpu_jobs_do_not_overlap(cluster: Cluster, root: Path) -> None:
    job = start(root)
    said = job.communicate(timeout=PATIENCE)
    assert job.returncode == 0, said
    jobs = seen(root)
    assert set(runs(root).values()) == {1} and len(jobs) == 4
    assert len({slurm_id for *_, slurm_id in jobs.values()}) == 4
    first, second = sorted(jobs[f"text_classification seed{seed}"] for seed in (0, 1))
    assert first[2] == second[2] == "0"
    assert first[1] <= second[0]
    assert jobs["clinical_triage seed0"][2] in ("", None)
    assert (root / "results" / "tiny" / "comparison.done").is_file()


def test_a_cancelled_job_is_named_and_only_it_is_redone(cluster: Cluster, root: Path) -> None:
    (root / "hold").touch()
    job = start(root)
    until(lambda: runs(root), job)
    time.sleep(1)
    [name, *_] = runs(root)
    running = cluster.ask("squeue", "-h", "-t", "RUNNING", "-o", "%i %k").splitlines()
    asked = name.split()[0]
    number = next(line.split()[0] for line in running if asked in line)
    subprocess.run(["scancel", number], check=True)
    (root / "hold").unlink()
    said = job.communicate(timeout=PATIENCE)
    assert job.returncode == 1, said
    assert f"{asked} mock/a" in said[0] and " failed " in said[0]
    assert re.search("medstudy run params/tiny .*--profile slurm.* redoes only what is missing", said[1])
    good = [n for n in runs(root) if record_of(root, n).get("status") == "ok"]
    assert len(good) == 3
    again = start(root)
    assert again.wait(timeout=PATIENCE) == 0, again.communicate()
    assert all(runs(root)[n] == 1 for n in good)
    assert all(record_of(root, n)["status"] == "ok" for n in runs(root))


def test_ctrl_c_leaves_no_job_in_the_queue_and_too_many_threads_are_refused(cluster: Cluster, root: Path) -> None:
    (root / "hold").touch()
    job = start(root)
    until(lambda: len(cluster.ask("squeue", "-h").splitlines()) == 4, job)
    assert "PENDING" in cluster.ask("squeue", "-h", "-o", "%T")
    job.send_signal(signal.SIGINT)
    assert job.wait(timeout=PATIENCE) == 130, job.communicate()
    deadline = time.monotonic() + 30
    while left := cluster.ask("squeue", "-h", "-t", "PENDING,RUNNING"):
        assert time.monotonic() < deadline, left
        time.sleep(0.5)
    (root / "hold").unlink()
    command = [sys.executable, "-m", "medstudy.batch.cli", "run", "params/tiny", "--profile", "slurm", "--threads", "9"]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True)
    assert done.returncode == 2 and "--threads 9" in done.stderr and "more than 2" in done.stderr


def test_what_slurm_refuses_is_said_in_its_words(cluster: Cluster, root: Path) -> None:
    words = ["run", "params/tiny", "--profile", "slurm", "--threads", "1", "--", "--until", "clinical_triage"]
    done = mock_study.medstudy(root, *words)  # the profile's memory, more than the node has
    assert done.returncode == 1
    assert "SLURM sbatch failed. The error message was 'sbatch: error: Memory specification" in done.stdout


def record_of(root: Path, name: str) -> dict[str, object]:
    task, seed = name.split()
    try:
        return record(root, task, int(seed.removeprefix("seed")))
    except FileNotFoundError:
        return {}
