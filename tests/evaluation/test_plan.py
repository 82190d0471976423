"""What a design can show, and a plan that is frozen before the test set is read."""

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from medstudy.batch.cli import main
from medstudy.data.cases import DataError
from medstudy.evaluation import plan
from medstudy.evaluation.comparison import rules_for
from medstudy.evaluation.verdict import Rules
from medstudy.params import ParamsError
from medstudy.studies import load_study

CASES = {"text_classification": 200, "clinical_reasoning": 200}


@pytest.fixture
def study(tmp_path: Path) -> Path:
    folder = shutil.copytree(Path("params/demo"), tmp_path / "params" / "planned")
    (folder / "shared.yaml").write_text((folder / "shared.yaml").read_text().replace("study: demo", ""))
    return folder


def runs(*trainings: int) -> list[SimpleNamespace]:
    """Runs of as many cells, each trained so often."""
    return [SimpleNamespace(cell=("task", str(cell))) for cell, n in enumerate(trainings) for _ in range(n)]


def test_one_cell_is_the_root_of_the_variances() -> None:
    known = plan.earlier_variances().assign(seed_sd=0.025, own_sd=0.0, case_sd=0.021, n_cases=200)
    shown = plan.shows(known, CASES, models=2, seeds=5).set_index(["scope", "name"])
    cell = shown.loc["cell", "text_classification, one model"]
    error = (0.025**2 / 5 + 0.021**2) ** 0.5
    assert cell["half_width"] == pytest.approx(2 * error, rel=0.05)
    dearer = plan.shows(known, CASES, models=2, seeds=5, alpha=plan.POCOCK[3])["gain"]  # more looks are paid for
    assert (dearer.to_numpy() > shown["gain"].to_numpy()).all()
    assert shown.loc["study", "study"]["gain"] < shown.loc["task", "text_classification"]["gain"] < cell["gain"]


def test_one_model_alone_is_no_mean_over_models() -> None:
    shown = plan.shows(plan.earlier_variances(), {"text_classification": 200}, models=1, seeds=2)
    assert shown["half_width"].nunique() == 1  # study, kind, task and cell are the same thing


def test_pococks_constants_keep_the_level() -> None:
    """Against independent increments, simulated: any of k looks crosses in 5 %."""
    import numpy as np
    from scipy.stats import norm

    steps = np.random.default_rng(0).normal(size=(200_000, 5))
    for looks, alpha in plan.POCOCK.items():
        z = steps[:, :looks].cumsum(axis=1) / np.sqrt(np.arange(1, looks + 1))
        assert (np.abs(z) > norm.ppf(1 - alpha / 2)).any(axis=1).mean() == pytest.approx(0.05, abs=0.003)


def test_a_frozen_plan_is_what_a_study_is_judged_by(study: Path, tmp_path: Path) -> None:
    (study / "study.yaml").write_text((study / "study.yaml").read_text() + "looks: [2, 3]\n")
    results = tmp_path / "results"
    frozen = plan.freeze(load_study(study), results)
    assert plan.freeze(load_study(study), results)["hash"] == frozen["hash"]  # once is enough
    assert rules_for(results, runs(3, 3), 0.5) == Rules(0.03, plan.POCOCK[2], frozen["hash"])
    assert "1 trainings a cell are no planned look (2, 3)" in rules_for(results, runs(3, 1), 0.03).note
    assert rules_for(tmp_path, runs(3), 0.5) == Rules(0.5)
    kept = (results / "plan.json").read_text()
    (results / "plan.json").write_text(kept.replace("dpo-sft_more below the margin", "otherwise"))
    assert rules_for(results, runs(3, 3), 0.5).note == "the rules are not those of the frozen plan"
    (results / "plan.json").write_text(kept)
    text = (study / "study.yaml").read_text()
    (study / "study.yaml").write_text(text.replace("[0, 1, 2]", "[0, 1]"))  # seeds may be added, look by look
    assert plan.freeze(load_study(study), results)["hash"] == frozen["hash"]
    (study / "study.yaml").write_text(text + "margin: 0.1\n")
    with pytest.raises(DataError, match="undo changes"):
        plan.freeze(load_study(study), results)


def test_a_plan_after_the_fact_is_refused(study: Path, tmp_path: Path) -> None:
    run = tmp_path / "results" / "builtin-llama" / "text_classification" / "seed0"
    run.mkdir(parents=True)
    (run / "metrics.json").write_text("{}")
    with pytest.raises(DataError, match="would prove nothing"):
        plan.freeze(load_study(study), tmp_path / "results")


@pytest.mark.parametrize("looks", ["[3, 2]", "[2]", "[1, 2, 4]"])
def test_looks_rise_and_the_seeds_make_one(study: Path, looks: str) -> None:
    (study / "study.yaml").write_text((study / "study.yaml").read_text() + f"looks: {looks}\n")
    with pytest.raises(ParamsError, match="rising numbers of seeds, one of them 3"):
        load_study(study)


def test_the_command_says_what_the_demo_can_show(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "params/demo"]) == 0
    said = capsys.readouterr().out
    assert "clinical_triage" in said and "margin 0.03" in said
    assert "one model" not in said  # the only one: its lines are those of the tasks
    assert main(["plan", "params/demo", "--variances", "results/none"]) == 2
