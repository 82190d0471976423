"""Kernels that are forks: apart from one another, and none outlives its job or its server."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import mock_study
import pytest

from medstudy.forkserver import ADDRESS, ForkServer, fork_server

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="kernels are forked on Linux only")
TELL = """import json, os, pathlib, random, sys
import datasets.config
seen = {"pid": os.getpid(), "parent": os.getppid(), "torch": "torch" in sys.modules, "folder": os.getcwd()}
seen |= {"cache": str(datasets.config.HF_DATASETS_CACHE), "home": os.environ["HF_HOME"], "argv": sys.argv[1:]}
seen |= {"left": hasattr(sys, "left_behind")}
sys.left_behind = True
pathlib.Path(name + ".json").write_text(json.dumps(seen))"""
SLEEP = TELL + "\nimport time; time.sleep(600)"


@pytest.fixture
def server() -> Iterator[ForkServer]:
    """A server that is attended to, as `medstudy run` does."""
    with fork_server(threads=1) as made:
        assert made is not None
        over = threading.Event()

        def attend() -> None:
            while not over.wait(0.1):
                made.attend()

        thread = threading.Thread(target=attend)
        thread.start()
        yield made
        over.set()
        thread.join()
    assert ADDRESS not in os.environ and not Path(made.address).exists()


def begin(root: Path, name: str, cell: str) -> subprocess.Popen[str]:
    mock_study.notebook(root / "notebooks" / f"{name}.ipynb", "name = ''", cell)
    words = [f"notebooks/{name}.ipynb", f"{name}/notebook.ipynb", "--set", f"name={name}"]
    return subprocess.Popen(
        [sys.executable, "-m", "medstudy.run_notebook", *words], cwd=root, stderr=subprocess.PIPE, text=True
    )


def told(root: Path, name: str) -> dict[str, object]:
    path, deadline = root / f"{name}.json", time.monotonic() + 60
    while not path.is_file() or not path.read_text():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return json.loads(path.read_text())


def is_gone(pid: object) -> bool:
    for _ in range(100):
        status = Path(f"/proc/{pid}/status")
        if not status.exists() or "State:\tZ" in status.read_text():
            return True
        time.sleep(0.05)
    return False


def test_each_job_has_a_fork_of_its_own_with_its_own_caches(server: ForkServer, tmp_path: Path) -> None:
    jobs = [begin(tmp_path, name, TELL) for name in ("a", "b")]
    assert [job.communicate()[1] for job in jobs] == ["", ""] and [job.returncode for job in jobs] == [0, 0]
    a, b = told(tmp_path, "a"), told(tmp_path, "b")
    assert server.process and a["parent"] == b["parent"] == server.process.pid and a["pid"] != b["pid"]
    for seen in (a, b):
        assert seen["torch"] and not seen["left"] and seen["folder"] == str(tmp_path)
        assert str(seen["cache"]).startswith(str(seen["home"])) and "forkserver" not in seen["argv"]
        assert is_gone(seen["pid"])
    assert a["cache"] != b["cache"]


def test_a_kernel_does_not_outlive_its_job(server: ForkServer, tmp_path: Path) -> None:
    job = begin(tmp_path, "a", SLEEP)
    kernel = told(tmp_path, "a")["pid"]
    job.kill()
    assert is_gone(kernel)
    job.communicate()


def test_a_kernel_that_is_killed_is_told_from_one_that_has_ended(server: ForkServer, tmp_path: Path) -> None:
    job = begin(tmp_path, "a", SLEEP)
    os.kill(int(str(told(tmp_path, "a")["pid"])), signal.SIGKILL)
    said = job.communicate()[1]
    assert job.returncode == 1 and "cell 3" in said and "it was killed from outside" in said


def test_without_the_server_kernels_start_as_ever(tmp_path: Path) -> None:
    with fork_server(threads=1) as server:
        assert server is not None
        first = begin(tmp_path, "a", SLEEP)
        while server.process is None:
            time.sleep(0.1)
            server.attend()
        kernel = told(tmp_path, "a")["pid"]
        server.process.kill()
        assert is_gone(kernel)
        assert first.communicate()[1] and first.returncode == 1
        server.process.wait()
        server.attend()
        second = begin(tmp_path, "b", TELL)
        assert second.communicate()[1] == "" and second.returncode == 0
        assert told(tmp_path, "b")["parent"] == second.pid


def test_a_study_forks_the_kernels_of_all_its_notebooks(tmp_path: Path) -> None:
    root = mock_study.make(tmp_path)
    for task in mock_study.TASKS:
        mock_study.task_notebook(root, task, '(folder / "parent.txt").write_text(str(os.getppid()))')
    done = mock_study.medstudy(root, "run", "params/tiny", "--", "--until", "comparison")
    assert done.returncode == 0, done.stderr
    parents = [path.read_text() for path in root.glob("results/tiny/*/*/*/parent.txt")]
    assert len(parents) == 4 and len(set(parents)) == 1
    assert is_gone(parents[0])
