"""Stages are redone exactly when what they depend on has changed; files are whole or not there."""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from peft import LoraConfig

from medstudy.data.card import load_card
from medstudy.data.cases import Case
from medstudy.data.splits import Splits
from medstudy.files import fingerprint, from_root, write_json
from medstudy.params import RunParams
from medstudy.runs import Run, RunError, Stage
from medstudy.training.preferences import Pair


def test_a_path_is_looked_for_here_and_then_in_the_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder in ("notebooks", "params/mine", "elsewhere"):
        (tmp_path / folder).mkdir(parents=True)
    card = tmp_path / "params" / "mine" / "card.yaml"
    card.write_text("name: x")
    monkeypatch.chdir(tmp_path / "notebooks")  # where JupyterLab runs a notebook
    assert from_root("params/mine/card.yaml") == card
    assert from_root("../elsewhere").samefile(tmp_path / "elsewhere")
    assert from_root(card) == card
    (tmp_path / "notebooks" / "params" / "mine").mkdir(parents=True)
    (tmp_path / "notebooks" / "params" / "mine" / "card.yaml").write_text("name: y")
    assert from_root("params/mine/card.yaml").read_text() == "name: y"


def test_a_finished_stage_is_reused_and_every_key_has_its_folder(params: RunParams) -> None:
    stage = Run(params).stage("sft", ("training",), rows=[1, 2])
    assert not stage.done
    (stage.folder / "adapter").write_text("weights")
    stage.finish(steps=3)
    changed = Run(params).stage("sft", ("training",), rows=[1, 3])
    assert not changed.done and changed.folder != stage.folder
    again = Run(params).stage("sft", ("training",), rows=[1, 2])  # going back
    assert again.done
    assert again.facts["steps"] == 3
    assert (again.folder / "adapter").read_text() == "weights"


def test_a_stage_that_was_begun_is_not_done_and_loses_nothing(params: RunParams) -> None:
    stage = Run(params).stage("sft", ("training",), rows=[1])
    (stage.folder / "checkpoints").mkdir()
    again = Run(params).stage("sft", ("training",), rows=[1])
    assert not again.done and (again.folder / "checkpoints").is_dir()


def test_the_start_of_a_stage_and_its_code_are_part_of_its_key(params: RunParams) -> None:
    run = Run(params)
    one, two = (run.stage("sft", ("training",), rows=[row]) for row in (1, 2))
    made = [("training", one), ("training", two), ("generation", one)]
    assert len({run.stage("dpo", (code,), start).key for code, start in made}) == 3


def test_fingerprint_sees_content_not_order_and_not_where_it_is_written(tmp_path: Path) -> None:
    from trl import SFTConfig

    def config(folder: str, rate: float) -> SFTConfig:
        return SFTConfig(str(tmp_path / folder), learning_rate=rate, use_cpu=True, bf16=False, report_to="none")

    assert fingerprint({"a": 1, "b": [2.0]}) == fingerprint({"b": [2.0], "a": 1})
    assert fingerprint({"output_dir": "x"}) != fingerprint({"output_dir": "y"})  # only cosmetic in trainer arguments
    assert fingerprint(config("a", 1e-3)) == fingerprint(config("b", 1e-3)) != fingerprint(config("a", 2e-3))
    one, two, three = (LoraConfig(r=rank, target_modules="all-linear") for rank in (2, 4, 2))
    assert fingerprint(one) == fingerprint(three) != fingerprint(two)


@pytest.fixture
def told(params: RunParams, cases: list[Case]) -> Run:
    """A run that has done all it must: sft, dpo on it, answers of both, tables."""
    run = Run(params)
    run.keep("splits", Splits(cases[:4], [], cases[4:6], cases[6:]))
    run.keep("pairs", [Pair("a", "b", [], "yes", "no", "own")])
    sft = trained(run, "sft")
    for name, adapter in (("base", None), ("sft", sft), ("dpo", trained(run, "dpo", sft))):
        run.stage(f"answers_{name}", ("training",), adapter)
    save(run, "base", "sft", "dpo")
    return run


def save(run: Run, *arms: str, but: str = "") -> None:
    """Write the tables of these arms, except ``but``."""
    for name in {"metrics", "contrasts", "gates"} - {but}:
        run.save(name, dict.fromkeys(arms, 1) if name == "metrics" else [])


def trained(run: Run, name: str, start: Stage | None = None, **made_with: Any) -> Stage:
    """A training as `fit` registers it."""
    beta = {"dpo_beta": run.params.dpo_beta} if name == "dpo" else {}
    stage = run.stage(name, ("training",), start, made_with=beta | made_with)
    stage.made_with = beta | made_with
    return stage


@pytest.mark.parametrize("shareable", [True, False])
def test_the_end_marker_is_whole_and_does_not_vouch_for_a_new_start(
    told: Run, params: RunParams, shareable: bool
) -> None:
    """Of a private source it holds no text, number or group that a cell added."""
    told.facts |= {"shareable": shareable, "dtype": "float32"}
    told.save("baselines", {"majority": {}, "ward 7": {"n": 6}})
    assert ("ward 7" in json.loads((told.folder / "baselines.json").read_text())) == shareable
    told.save("contrasts", [{"contrast": "dpo-sft"}, {"contrast": "Isolation Verbena"}])
    assert ("Verbena" in (told.folder / "contrasts.json").read_text()) == shareable
    told.finish(pairs=5, note="Grobblestone, Ferdinand", porphyria=3)
    record = json.loads((told.folder / "run.json").read_text())
    assert (record["status"], record["pairs"], record["dtype"]) == ("ok", 5, "float32")
    assert ("note" in record) == ("porphyria" in record) == shareable
    assert (told.private / "splits.jsonl").is_file() and (told.private / "pairs.jsonl").is_file()
    assert stat.S_IMODE(told.private.stat().st_mode) == 0o700
    Run(params)
    assert not (told.folder / "run.json").exists()


def test_what_another_run_left_is_kept(told: Run, params: RunParams) -> None:
    told.finish()
    Run(params.model_copy(update={"dpo_beta": 0.5}))
    [kept] = (told.private / "results").glob("*/run.json")
    assert json.loads(kept.read_text())["parameters"]["dpo_beta"] == 0.1
    assert (kept.parent / "metrics.json").is_file()


def test_answers_that_are_not_those_that_were_scored_are_refused(told: Run) -> None:
    """The cell that scores was left out after another training: run.json spoke of its parameters."""
    made = told.stages["answers_sft"]
    pd.DataFrame({"outputs": [["yes"], ["no"]]}).to_parquet(made.folder / "outputs.parquet")
    scored = pd.DataFrame({"arm": ["sft", "sft"], "output": ["yes", "yes"]})
    scored.to_parquet(told.private / "predictions.parquet")
    with pytest.raises(RunError, match="what was scored are not sft's answers"):
        told.finish()
    scored.assign(output=["yes", "no"]).to_parquet(told.private / "predictions.parquet")
    assert told.finish()["status"] == "ok"


def test_a_training_with_another_value_than_run_json_would_say_is_named(told: Run) -> None:
    sft = told.stages["sft"]
    dpo = trained(told, "dpo", sft, dpo_beta=0.5)  # its arguments were edited, the parameters not
    told.stage("answers_dpo", ("training",), dpo)
    save(told, "dpo")
    with pytest.raises(RunError, match="dpo was trained with dpo_beta = 0.5, but the parameters say 0.1"):
        told.finish()
    assert not (told.folder / "run.json").exists()


def test_answers_of_a_training_of_an_earlier_start_are_named(told: Run, params: RunParams, cases: list[Case]) -> None:
    new = Run(params.model_copy(update={"dpo_beta": 0.5}))
    new.keep("splits", Splits(cases[:4], [], cases[4:6], cases[6:]))
    with pytest.raises(RunError, match="the pairs are of an earlier start"):
        new.finish()
    new.keep("pairs", [])
    save(new, "dpo")
    with pytest.raises(RunError, match="the answers of dpo are of an earlier start"):
        new.finish()
    new.stage("answers_dpo", ("training",), told.stages["dpo"])
    save(new, "dpo")
    with pytest.raises(RunError, match="dpo was trained with dpo_beta = 0.1, but the parameters say 0.5"):
        new.finish()


def test_an_adapter_whose_start_was_trained_anew_is_named(told: Run) -> None:
    trained(told, "sft", epochs=3)
    with pytest.raises(RunError, match="answers_sft was made from a training sft that is not the one of this start"):
        told.finish()


@pytest.mark.parametrize("missing", ["metrics", "contrasts", "gates"])
def test_a_table_that_was_not_saved_of_these_answers_stops_the_end_marker(told: Run, missing: str) -> None:
    """An error in the gates' cell cannot be followed by ok, though an earlier gates.json is there."""
    told.stage("answers_sft", ("training",), told.stages["sft"], prompts=["another"])
    save(told, "base", "sft", "dpo", but=missing)
    with pytest.raises(RunError, match=f"{missing}.json is not of the answers as they are now"):
        told.finish()


def test_test_cases_are_told_from_others(told: Run, cases: list[Case]) -> None:
    assert told.split_of(cases[6:]) == "test"
    assert told.split_of(cases[4:6]) == "validation"
    assert told.split_of(cases[6:7]) == "other"


def test_a_file_that_cannot_be_written_whole_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="Out of range float"):
        write_json(tmp_path / "x.json", {"value": float("nan")})
    assert list(tmp_path.iterdir()) == []


def test_splits_of_other_cases_than_those_read_last_are_refused(params: RunParams) -> None:
    """A cell was skipped after another card: run.json said the new one, and everything was of the old."""
    run, card = Run(params), load_card("synthetic_uti")
    first, other = (Case(f"c{i}", f"g{i}", "text", {"label": "yes"}) for i in range(2))
    run.keep_source(card, [first])
    run.keep("splits", Splits([first], [], [], []))
    with pytest.raises(RunError, match="not of the cases as they were read last"):
        run.keep("splits", Splits([first], [], [], [other]))
