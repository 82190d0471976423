"""Kernels that are forks: apart from one another, and none outlives its job or its server."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import mock_study
import pytest

from medstudy.batch.forkserver import ADDRESS, ForkServer, fork_kernel, fork_server

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


def begin(root: Path, name: str, cell: str, *more: str) -> subprocess.Popen[str]:
    mock_study.notebook(root / "notebooks" / f"{name}.ipynb", "name = ''", cell)
    words = [f"notebooks/{name}.ipynb", f"{name}/notebook.ipynb", "--set", f"name={name}", *more]
    return subprocess.Popen(
        [sys.executable, "-m", "medstudy.batch.run_notebook", *words],
        cwd=root,
        stderr=subprocess.PIPE,
        text=True,
    )


def told(root: Path, name: str) -> dict[str, object]:
    path, deadline = root / f"{name}.json", time.monotonic() + 60
    while not path.is_file() or not path.read_text():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return json.loads(path.read_text())


def ended_well(job: subprocess.Popen[str]) -> bool:
    said = job.communicate()[1]  # Jupyter interrupts a kernel before it ends it, of which some tell
    return job.returncode == 0 and "FAILED" not in said


def is_gone(pid: object) -> bool:
    for _ in range(100):
        status = Path(f"/proc/{pid}/status")
        if not status.exists() or "State:\tZ" in status.read_text():
            return True
        time.sleep(0.05)
    return False


def test_each_job_has_a_fork_of_its_own_with_its_own_caches(server: ForkServer, tmp_path: Path) -> None:
    jobs = [begin(tmp_path, name, TELL) for name in ("a", "b")]
    assert all(map(ended_well, jobs))
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
        assert ended_well(second)
        assert told(tmp_path, "b")["parent"] == second.pid


def test_a_package_that_was_edited_since_is_imported_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    shutil.copytree(mock_study.REPOSITORY / "medstudy", tmp_path / "medstudy")
    (tmp_path / "medstudy" / ".#metrics.py").symlink_to("nowhere")  # as an editor marks what is not saved
    monkeypatch.chdir(tmp_path)  # where `python -m` looks first
    server = request.getfixturevalue("server")
    first = begin(tmp_path, "a", TELL)
    assert ended_well(first) and told(tmp_path, "a")["parent"] == server.process.pid
    with (tmp_path / "medstudy" / "metrics.py").open("a") as file:
        file.write("# edited\n")
    second = begin(tmp_path, "b", TELL)
    assert ended_well(second) and told(tmp_path, "b")["parent"] == second.pid


def test_what_the_server_cannot_fork_leaves_the_others_alone(
    server: ForkServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = begin(tmp_path, "a", SLEEP)
    assert told(tmp_path, "a")["parent"] == server.process.pid
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    second = begin(tmp_path, "b", TELL, "--threads", "2")
    assert ended_well(second) and told(tmp_path, "b")["parent"] == second.pid
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as stranger:
        stranger.connect(server.address)
    third = begin(tmp_path, "c", TELL)
    assert ended_well(third) and told(tmp_path, "c")["parent"] == server.process.pid
    assert first.poll() is None and server.process.poll() is None
    first.kill()
    first.communicate()


def test_where_there_is_no_server_no_socket_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(ADDRESS, raising=False)
    monkeypatch.setattr(socket, "socket", None)
    assert fork_kernel([], {}, []) is None


def test_a_study_forks_the_kernels_of_all_its_notebooks(tmp_path: Path) -> None:
    root = mock_study.make(tmp_path)
    for task in mock_study.TASKS:
        mock_study.task_notebook(root, task, '(folder / "parent.txt").write_text(str(os.getppid()))')
    done = mock_study.medstudy(root, "run", "params/tiny", "--", "--until", "comparison")
    assert done.returncode == 0, done.stderr
    parents = [path.read_text() for path in root.glob("results/tiny/*/*/*/parent.txt")]
    assert len(parents) == 4 and len(set(parents)) == 1
    assert is_gone(parents[0])
