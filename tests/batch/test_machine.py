"""What jobs share on a machine."""

from __future__ import annotations

from pathlib import Path

import pytest

from medstudy.batch import machine


def test_jobs_are_given_different_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine.tempfile, "gettempdir", lambda: str(tmp_path))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6")
    with machine.take_gpus(1) as first, machine.take_gpus(2) as others:
        assert sorted([*first, *others]) == ["4", "5", "6"]
    with machine.take_gpus(0) as none, machine.take_gpus(3) as all_of_them:
        assert none == []
        assert all_of_them == ["4", "5", "6"]


def test_a_lock_that_another_user_made_is_respected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine.tempfile, "gettempdir", lambda: str(tmp_path))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    theirs = tmp_path / "medstudy-gpu-0.lock"
    theirs.touch()
    theirs.chmod(0o444)  # not to be opened for writing, as another user's
    with theirs.open() as held:
        assert machine.try_lock(held)
        with machine.take_gpus(1) as mine:
            assert mine == ["1"]


def test_no_gpu_is_visible_where_none_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for value in ("", "-1"):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", value)
        assert machine.visible_gpus() == []


def test_lock_is_free_again_when_its_holder_ends(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    assert not machine.is_locked(path)
    with path.open("w") as holder, path.open("w") as other:
        assert machine.try_lock(holder)
        assert not machine.try_lock(other)
        assert machine.is_locked(path)
    assert not machine.is_locked(path)
