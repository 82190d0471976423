"""The command line: quick to answer, clear when wrong."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import mock_study
import pytest
from mock_study import medstudy, write

from medstudy.batch import cli

CARD = """
name: fever
title: Made-up notes
task: text_classification
question: Does the patient have a fever?
labels: {label: [no, yes]}
positive: yes
load: {kind: files, format: csv, files: [{path: fever.csv}]}
columns: {text: "{note}", gold: {label: {column: fever}}, missing: {fever: [unknown]}}
"""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A study of one task on a small file of its own."""
    root = mock_study.make(tmp_path, seeds=(0, 1))
    rows = [f"note {i} on the ward,{('no', 'yes')[i % 2]}" for i in range(40)] + ["note 99,unknown"]
    (root / "fever.csv").write_text("\n".join(["note,fever", *rows]))
    (root / "fever.yaml").write_text(CARD)
    study = root / "params" / "tiny"
    write(study / "study.yaml", models=["mock/a"], seeds=[0, 1], tasks={"text_classification": {}})
    write(study / "text_classification.yaml", data="fever.yaml", n_train=6, n_prefer=4, n_valid=4, n_test=12)
    write(study / "shared.yaml")
    return root


def test_check_says_what_would_run(root: Path) -> None:
    done = medstudy(root, "check", "params/tiny")
    assert done.returncode == 0, done.stderr
    assert "tiny: 2 runs (1 tasks x 1 models x 2 seeds)" in done.stdout
    assert "41 rows, 40 cases" in done.stdout and "mock/a: train 6, prefer 4, validation 4, test 12" in done.stdout
    assert "the model is not on this machine yet" in done.stdout
    assert "left out: 1 x" in done.stdout
    assert "note: at most 4 pairs give 1 optimiser steps: too few" in done.stdout
    assert "runs: 2 not started" in done.stdout
    assert not (root / "results").exists()


def test_check_refuses_what_cannot_run(root: Path) -> None:
    task = root / "params" / "tiny" / "text_classification.yaml"
    write(task, data="fever.yaml", n_test=400)
    assert_refused(root, "text_classification, mock/a: ", "400")
    write(task, data="fever.yml", n_test=4)
    assert_refused(root, "fever.yml")
    write(task, data="fever.yaml", n_test="many")
    assert_refused(root, "n_test = 'many'")


def test_check_lists_all_that_is_wrong_with_every_task_and_model(root: Path, tiny_model: Path) -> None:
    study, bare = root / "params" / "tiny", root / "bare"
    shutil.copytree(tiny_model, bare)
    for file in (bare / "chat_template.jinja", bare / "tokenizer_config.json"):
        if file.suffix == ".jinja":
            file.unlink(missing_ok=True)
        else:
            said = json.loads(file.read_text())
            said.pop("chat_template", None)
            file.write_text(json.dumps(said))
    models = [str(tiny_model), "./nowhere", str(bare)]
    write(study / "study.yaml", models=models, seeds=[0], tasks={"text_classification": {}, "clinical_triage": {}})
    write(study / "text_classification.yaml", data="fever.yaml", n_test=12, n_valid=400, max_new_tokens=1)
    write(study / "clinical_triage.yaml", data="none.yaml")
    where = "text_classification, "
    assert_refused(root, f"{where}{tiny_model}: ", "max_new_tokens", "n_valid = 400", "there is no folder ./nowhere")
    assert_refused(root, "chat template: it has none", "clinical_triage: ", "none.yaml")
    numbers = [line for line in medstudy(root, "check", "params/tiny").stderr.splitlines() if "max_new_tokens" in line]
    assert numbers and "set max_new_tokens = " in numbers[0]


def test_check_refuses_an_arm_that_would_have_no_room(root: Path) -> None:
    """Seen once: check passed, and the notebook stopped at its worked examples."""
    study = root / "params" / "tiny"
    write(study / "study.yaml", models=["builtin/llama"], seeds=[0], tasks={"text_classification": {}})
    sizes = {"n_train": 8, "n_prefer": 8, "n_valid": 8, "n_test": 8}
    write(study / "text_classification.yaml", data="fever.yaml", max_new_tokens=2010, **sizes)
    assert_refused(root, "few_shot_k = 1: beside the longest prompt", "set few_shot_k = 0")


def assert_refused(root: Path, *words: str) -> None:
    done = medstudy(root, "check", "params/tiny")
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    for word in words:
        assert word in done.stderr


def test_status_is_a_line_a_run(root: Path) -> None:
    runs = root / "results" / "tiny" / "mock-a" / "text_classification"
    for seed, record in enumerate(({"status": "ok"}, {"status": "failed", "message": "cell 3: disk full"})):
        (runs / f"seed{seed}").mkdir(parents=True)
        (runs / f"seed{seed}" / "run.json").write_text(json.dumps(record))
    lines = medstudy(root, "status", "results/tiny").stdout.splitlines()
    assert [line.split()[4] for line in lines[:2]] == ["ok", "failed"]
    assert lines[1].endswith("cell 3: disk full")
    assert lines[2] == "1 ok, 1 failed"
    (runs / "seed0" / "run.json").unlink()
    (runs / "seed0" / "status.json").write_text('{"stage": "sft"}')
    assert medstudy(root, "status", "params/tiny").stdout.splitlines()[0].split()[4:] == ["stopped", "sft"]


def test_unknown_profile_or_number_is_refused(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        "no profile 'cloud' (allowed: default, slurm)"
        in medstudy(root, "run", "params/tiny", "--profile", "cloud").stderr
    )
    with pytest.raises(SystemExit):
        cli.main(["run", "params/tiny", "--jobs", "0"])
    assert "not a whole number above 0" in capsys.readouterr().err


def test_a_study_elsewhere_may_not_share_its_results_with_one_of_the_checkout(root: Path, tmp_path: Path) -> None:
    other = tmp_path / "tiny"
    shutil.copytree(root / "params" / "tiny", other)
    done = medstudy(root, "check", str(other))
    assert done.returncode == 2
    assert "would share results/tiny: give one another name" in done.stderr
