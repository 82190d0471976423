"""Each fault that would make an arm's numbers untrue is planted once and seen by its gate; a clean study passes all."""

from __future__ import annotations

import copy
import dataclasses
import json
import random
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from trl import DPOTrainer, SFTTrainer

from medstudy.arms import TRAINED
from medstudy.data.audit import audit
from medstudy.data.card import load_card
from medstudy.data.cases import Case
from medstudy.data.load import Loaded
from medstudy.data.splits import Splits
from medstudy.params import RunParams, resolve
from medstudy.runs import Run
from medstudy.tasks import get_task
from medstudy.tasks.base import Task
from medstudy.training import checks, decoding, gates, generation
from medstudy.training.arguments import control_config, dpo_config, lora_config, sft_config
from medstudy.training.checks import CONTROLS
from medstudy.training.fit import fit
from medstudy.training.gates import Gate
from medstudy.training.preferences import Pair, Pairs, audit_pairs, make_pairs
from medstudy.training.prompts import sft_row

CARD = load_card("synthetic_uti")
TASK = get_task("text_classification", CARD)
WORDS = ["fever", "chills", "nausea", "flank", "pain", "urgency", "catheter", "stone", "relapse", "travel", "stent"]
Change = Callable[[Any], Any]


def made_up(first: int, n: int) -> list[Case]:
    """Cases whose texts have little in common; right answers in turns."""
    rng = random.Random(first)
    return [
        Case(f"case{i}", f"group{i}", f"{' '.join(rng.sample(WORDS, 8))} {i}", {"label": ("yes", "no")[i % 2]})
        for i in range(first, first + n)
    ]


SPLITS = Splits(made_up(0, 8), made_up(100, 8), made_up(300, 4), made_up(200, 8))


@dataclasses.dataclass
class Study:
    """What a notebook leaves behind before its gates are asked, and how a part of it is made again."""

    run: Run
    made: Pairs
    splits: Splits = SPLITS
    task: Task = TASK
    source: str = "own_errors"

    def sft(self, trainer: type = SFTTrainer, rows: Change = list, lora: Any = None) -> None:
        cases = rows(self.splits.train)
        given = [sft_row(TASK, case) for case in cases], lora or lora_config(self.run.params)
        self.run.stages["sft"] = fit(self.run, "sft", trainer, sft_config(self.run.params, self.run), *given)

    def dpo(self, trainer: type = DPOTrainer, pairs: Change = list) -> None:
        rows = [pair.row() for pair in pairs(self.made.pairs)]
        fit(self.run, "dpo", trainer, dpo_config(self.run.params, self.run), rows, self.run.stages["sft"])

    def control(self, arm: str = "sft_more", rate: float = 3e-4) -> None:
        rows = [sft_row(TASK, case, TASK.target(case)) for case in self.splits.prefer]
        rows = [pair.chosen_row() for pair in self.made.pairs] if arm == "sft_chosen" else rows
        args = control_config(self.run.params, self.run, arm, len(rows), self.run.stages["dpo"].facts["steps"])
        args.learning_rate = rate
        fit(self.run, arm, SFTTrainer, args, rows, self.run.stages["sft"])

    def answer(self, arm: str, by: str = "", task: Task = TASK) -> None:
        generation.answer_cases(self.run, arm, task, self.splits.test, self.run.stages.get(by or arm))

    def sample(self) -> list[list[str]]:
        return generation.sample_cases(self.run, TASK, self.splits.prefer, self.run.stages["sft"])

    def elsewhere(self, results: Path) -> Study:
        """A copy of which nothing that is made again is taken for what was made before."""
        run = Run(self.run.params.model_copy(update={"results": str(results)}))
        run.stages, run.kept, run.tried = dict(self.run.stages), dict(self.run.kept), {}
        return dataclasses.replace(self, run=run)

    def gates(self) -> dict[str, Gate]:
        whole = Loaded(self.splits.all(), len(self.splits.all()), [], CARD.labels)
        self.run.params = self.run.params.model_copy(update={"pair_source": self.source})
        tables = audit(whole, self.splits), audit_pairs(self.made, self.splits)
        checked = gates.check_gates(self.run, self.task, self.splits, *tables)
        assert len(checked) == gates.GATES
        return {gate.gate: gate for gate in checked}


@pytest.fixture(scope="module")
def clean(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Study:
    small = {"lora_rank": 2, "batch_size": 2, "sft_epochs": 1, "sft_more_epochs": 1, "sft_chosen_epochs": 1}
    small |= {"dpo_epochs": 1, "samples_per_case": 2, "max_new_tokens": 4, "eval_batch_size": 4}
    named = {"task": "text_classification", "data": "synthetic_uti", "study": "unit", "model": str(tiny_model)}
    params: RunParams = resolve(named | small | {"results": str(tmp_path_factory.mktemp("results"))})
    study = Study(Run(params), Pairs([], {}))
    study.sft()
    study.made = make_pairs(params, TASK, SPLITS.prefer, study.sample())
    study.run.keep("splits", SPLITS)
    study.run.keep("pairs", study.made.pairs)
    study.dpo()
    for arm in CONTROLS:
        study.control(arm)
    for arm in ("base", *TRAINED):
        study.answer(arm)
    return study


def spoilt(kind: type, spoil: Callable[[Any], None]) -> type:
    """A trainer in which something is wrong before it trains."""

    class Spoilt(kind):
        def __init__(self, *args: Any, **given: Any) -> None:
            super().__init__(*args, **given)
            spoil(self)

    return Spoilt


def rows_by(rewrite: Change) -> type:
    """SFT that is given other rows."""
    return spoilt(SFTTrainer, lambda trainer: setattr(trainer, "train_dataset", trainer.train_dataset.map(rewrite)))


def taken_for_padding(trainer: Any) -> None:
    """As collators do where the end token is also the one to pad with."""
    collate = trainer.data_collator

    def collator(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        batch = collate(rows)
        batch["labels"][batch["labels"] == rows[0]["labels"][-1]] = -100
        return batch

    trainer.data_collator = collator


def freed(trainer: Any) -> None:
    next(p for name, p in trainer.model.named_parameters() if "lora_" not in name).requires_grad_(True)


def other_reference(trainer: Any) -> None:
    for name, weight in trainer.model.named_parameters():
        if ".ref." in name and "lora_B" in name:
            weight.data.add_(0.5)


def exchanged(pairs: list[Pair]) -> list[Pair]:
    return [dataclasses.replace(pair, chosen=pair.rejected, rejected=pair.chosen) for pair in pairs]


def rejecting(text: Callable[[Pair], str]) -> Change:
    return lambda pairs: [dataclasses.replace(pair, rejected=text(pair)) for pair in pairs]


def from_labels(study: Study, change: Change) -> None:
    study.made = make_pairs(study.run.params.model_copy(update={"pair_source": "labels"}), TASK, SPLITS.prefer)
    study.made = dataclasses.replace(study.made, pairs=change(study.made.pairs))
    study.source = "labels"
    study.run.keep("pairs", study.made.pairs)
    study.dpo()
    study.control("sft_chosen")


def worded(prompt: Callable[[str, Case], str]) -> Task:
    """The task with another prompt."""
    return type("Worded", (type(TASK),), {"prompt": lambda self, case: prompt(TASK.prompt(case), case)})(CARD)


def with_test(study: Study, text: Callable[[int, Case], str]) -> None:
    test = [dataclasses.replace(case, text=text(i, case)) for i, case in enumerate(SPLITS.test)]
    study.splits = dataclasses.replace(SPLITS, test=test)


def other_side(study: Study, patched: pytest.MonkeyPatch) -> None:
    def right(rows: list[list[int]], pad: int, device: Any) -> Any:
        width = max(map(len, rows))
        ids = [row + [pad] * (width - len(row)) for row in rows]
        return torch.tensor(ids), torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])

    patched.setattr(decoding, "_left_pad", right)
    study.answer("dpo")


def padding_read(study: Study, patched: pytest.MonkeyPatch) -> None:
    pad = decoding._left_pad
    patched.setattr(decoding, "_left_pad", lambda *given: (pad(*given)[0], torch.ones_like(pad(*given)[1])))
    study.answer("dpo")


def other_temperature(study: Study, patched: pytest.MonkeyPatch) -> None:
    patched.setattr(generation, "Decoding", lambda *given: decoding.Decoding(*given[:3], 0.3, *given[4:]))
    study.sample()


def dropping(study: Study, _: Any) -> None:
    lora = lora_config(study.run.params)
    lora.lora_dropout = 0.1
    study.sft(lora=lora)


def worse_on_validation(study: Study, _: Any) -> None:
    row = {"settings": {}, "n": 60, "chosen": True}
    study.run.tried = {"sft": [row | {"score": 0.77}], "sft_more": [row | {"score": 0.13}]}


def shared_patient(study: Study, _: Any) -> None:
    study.splits = dataclasses.replace(SPLITS, validation=[dataclasses.replace(SPLITS.test[0], case_id="again")])


def lost(study: Study, _: Any) -> None:
    study.sft(spoilt(SFTTrainer, lambda t: setattr(t, "train_dataset", t.train_dataset.select(range(7)))))


def cut(study: Study, _: Any) -> None:
    """As TRL does with rows beyond its default length."""
    args = sft_config(study.run.params, study.run)
    args.max_length = study.run.stages["sft"].facts["longest"] - 1
    rows = [sft_row(TASK, case) for case in study.splits.train]
    study.run.stages["sft"] = fit(study.run, "sft", SFTTrainer, args, rows, lora_config(study.run.params))


def twice_the_same(study: Study, _: Any) -> None:
    same = dataclasses.replace(study.made.pairs[0], chosen="yes", rejected="Yes.")
    study.made = dataclasses.replace(study.made, pairs=[same])


def pair_of_test(study: Study, _: Any) -> None:
    study.made = dataclasses.replace(study.made, pairs=[dataclasses.replace(study.made.pairs[0], case_id="case200")])


def other_weights(study: Study, _: Any) -> None:
    """As if the adapter lay on another base."""
    probe = study.run.stages["sft"].folder / "probe.pt"
    saved = torch.load(probe)
    torch.save(saved | {"logits": saved["logits"].flip(0)}, probe)
    study.answer("sft")
    torch.save(saved, probe)


def told(study: Study, name: str, **facts: Any) -> None:
    """As if that had been measured of a stage: what a model of this size cannot show."""
    stage = study.run.stages[name] = copy.copy(study.run.stages[name])
    stage.facts = stage.facts | facts


END, NO_ANSWER = "one BOS, trained end token", "the prompt holds no answer"
ASKED, SIDES, CONTROL = "asked as trained", "chosen is right, rejected is wrong", "the controls learnt"
TAUGHT, COPIED = "trained on its answers", "no test text is trained on"
#: Fault -> how it is planted, and the gate that must see it.
FAULTS: dict[str, tuple[Callable[[Study, Any], Any], str]] = {
    "answers of DPO read from the SFT adapter": (
        lambda s, _: s.answer("dpo", by="sft"),
        "each arm answers by its own adapter",
    ),
    "answers of SFT by the base model": (
        lambda s, _: s.answer("sft", by="none"),
        "each arm answers by its own adapter",
    ),
    "chosen and rejected exchanged": (lambda s, _: s.dpo(pairs=exchanged), SIDES),
    "other sides trained than were audited": (lambda s, _: s.dpo(pairs=exchanged), TAUGHT),
    "rejected is right": (lambda s, _: s.dpo(pairs=rejecting(lambda pair: pair.chosen)), SIDES),
    "rejected is gibberish": (lambda s, _: s.dpo(pairs=rejecting(lambda pair: "xq zz")), SIDES),
    "exchanged labels": (lambda s, _: from_labels(s, exchanged), SIDES),
    "gibberish beside labels": (lambda s, _: from_labels(s, rejecting(lambda pair: "xq zz")), SIDES),
    "end token not in the rows": (
        lambda s, _: s.sft(rows_by(lambda row: {name: row[name][:-1] for name in ("input_ids", "labels")})),
        END,
    ),
    "end token not trained": (lambda s, _: s.sft(spoilt(SFTTrainer, taken_for_padding)), END),
    "two BOS": (
        lambda s, _: s.sft(rows_by(lambda row: {n: [row[n][0], *row[n]] for n in ("input_ids", "labels")})),
        END,
    ),
    "loss on the prompt": (lambda s, _: s.sft(rows_by(lambda row: {"labels": row["input_ids"]})), ASKED),
    "loss with a gap": (
        lambda s, _: s.sft(rows_by(lambda row: {"labels": row["labels"][:-3] + [-100] + row["labels"][-2:]})),
        ASKED,
    ),
    "asked with another prompt than trained": (
        lambda s, _: s.answer("dpo", task=worded(lambda text, case: f"Think. {text}")),
        ASKED,
    ),
    "padding that the model reads": (padding_read, ASKED),
    "padding on the right": (other_side, "eval mode, greedy, left padding"),
    "answers of other cases taught": (lambda s, _: s.sft(rows=lambda cases: cases[1:] + cases[:1]), TAUGHT),
    "half of the test copied in training": (
        lambda s, _: with_test(s, lambda i, case: SPLITS.train[i].text if i % 2 else case.text),
        COPIED,
    ),
    "a test that is nearly trained": (lambda s, _: with_test(s, lambda i, _: f"{SPLITS.prefer[i].text} now"), COPIED),
    "label in the text": (lambda s, _: with_test(s, lambda i, c: f"{c.text}, answer: {c.gold['label']}"), NO_ANSWER),
    "label in the prompt": (
        lambda s, _: setattr(s, "task", worded(lambda text, case: f"{case.gold['label']} {text}")),
        NO_ANSWER,
    ),
    "control with a rate of 1e-6": (lambda s, _: s.control(rate=1e-6), CONTROL),
    "control destroyed": (lambda s, _: told(s, "sft_more", first_loss=0.2, last_loss=2.4), CONTROL),
    "control far worse than SFT on validation": (worse_on_validation, CONTROL),
    "samples at another temperature": (other_temperature, "samples are the SFT model's"),
    "dropout in the policy": (dropping, "no dropout"),
    "a base weight that trains": (lambda s, _: s.dpo(spoilt(DPOTrainer, freed)), "only the adapter moved"),
    "another reference": (lambda s, _: s.dpo(spoilt(DPOTrainer, other_reference)), "reference is the SFT model"),
    "a patient in two splits": (shared_patient, "splits are disjoint"),
    "a row lost": (lost, "no row lost or cut"),
    "rows that TRL cuts": (cut, END),
    "pairs of two equal sides": (twice_the_same, "pairs from preference cases only"),
    "pairs of test cases": (pair_of_test, "pairs from preference cases only"),
    "an adapter on another base": (other_weights, "adapter reloads"),
    "padding that counts": (lambda s, _: told(s, "answers_sft", changed_by_batching=8), "batch size does not matter"),
}


def failed(checked: dict[str, Gate]) -> set[str]:
    """Gates that failed, each with words that say what it means."""
    assert all(gate.passed != (len(gate.reason.split()) > 5) for gate in checked.values())
    return {name for name, gate in checked.items() if not gate.passed}


def test_a_clean_study_passes_every_gate(clean: Study) -> None:
    checked = clean.gates()
    assert failed(checked) == set()
    assert {gate for _, gate in FAULTS.values()} == set(checked)  # and each is seen red below
    page = gates.gates_table(list(checked.values())).to_html()
    assert page.count("passed") > gates.GATES and "FAILED" not in page
    json.dumps([vars(gate) for gate in checked.values()])


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_seen(fault: str, clean: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plant, gate = FAULTS[fault]
    study = clean.elsewhere(tmp_path)
    plant(study, monkeypatch)
    checked = study.gates()
    assert gate in failed(checked), checked[gate].value


def test_a_gate_whose_stage_was_not_run_fails_and_says_so(clean: Study, tmp_path: Path) -> None:
    study = clean.elsewhere(tmp_path)
    del study.run.stages["dpo"]
    checked = study.gates()
    assert checked["reference is the SFT model"].value == "not run: dpo"
    assert "reference is the SFT model" in failed(checked) and "splits are disjoint" not in failed(checked)


def test_a_dpo_that_moved_nothing_is_no_measure_of_the_controls(clean: Study, tmp_path: Path) -> None:
    """Seen in a study of one step, which the warm-up spends at rate 0: the gates' cell broke off."""
    study = clean.elsewhere(tmp_path)
    told(study, "dpo", moved=0.0)
    assert study.gates()["the controls learnt"].passed


@pytest.mark.parametrize("offered", [True, False])
def test_an_answer_among_options_is_not_told(offered: bool) -> None:
    """Seen once: multiple choice, where the right answers of the test alone were looked for, was called a leak."""
    cases = []
    for i, name in enumerate(WORDS[:8]):
        options = {"A": name, "B": f"no such {i}"}
        details = {"options": options} if offered else {}
        cases.append(Case(f"c{i}", f"g{i}", f"Which? {options['A']} or {options['B']}", {"label": name}, details))
    passed, _, _ = checks.hidden(SimpleNamespace(task=TASK, splits=Splits([], [], [], cases)))
    assert passed is offered
