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

import pandas as pd
import pytest
import torch
from test_fit import spoilt
from trl import DPOTrainer, SFTTrainer

from medstudy.arms import ARMS, TRAINED
from medstudy.data.audit import audit
from medstudy.data.card import load_card
from medstudy.data.cases import Case
from medstudy.data.load import Loaded
from medstudy.data.splits import Splits
from medstudy.params import resolve
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
Change, Plant = Callable[[Any], Any], Callable[[Any, Any], Any]
IDS = ("input_ids", "labels")
SCORE = {"settings": {}, "n": 60, "chosen": True, "score": 0.13}


def made_up(first: int, n: int) -> list[Case]:
    """Cases whose texts have little in common; right answers in turns."""
    rng = random.Random(first)
    texts = {i: f"{' '.join(rng.sample(WORDS, 8))} {i}" for i in range(first, first + n)}
    return [Case(f"case{i}", f"group{i}", text, {"label": ("yes", "no")[i % 2]}) for i, text in texts.items()]


SPLITS = Splits(made_up(0, 8), made_up(100, 8), made_up(300, 4), made_up(200, 8))


@dataclasses.dataclass
class Study:
    """What a notebook leaves behind before its gates are asked, and how a part of it is made again."""

    run: Run
    made: Pairs
    splits: Splits = SPLITS
    task: Task = TASK
    source: str = "own_errors"

    def sft(
        self, trainer: type = SFTTrainer, rows: Change = list, lora: Any = None, max_length: int | None = None
    ) -> None:
        args = sft_config(self.run.params, self.run)
        args.max_length = max_length
        given = [sft_row(TASK, case) for case in rows(self.splits.train)], lora or lora_config(self.run.params)
        self.run.stages["sft"] = fit(self.run, "sft", trainer, args, *given)

    def dpo(self, trainer: type = DPOTrainer, pairs: Change = list) -> None:
        rows = [pair.row() for pair in pairs(self.made.pairs)]
        fit(self.run, "dpo", trainer, dpo_config(self.run.params, self.run), rows, self.run.stages["sft"])

    def control(self, arm: str = "sft_more", rate: float = 3e-4) -> None:
        rows = [sft_row(TASK, case, TASK.target(case)) for case in self.splits.prefer]
        rows = [pair.chosen_row() for pair in self.made.pairs] if ARMS[arm].rows == "chosen" else rows
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
        assert len(checked) == len(gates.CHECKS)
        return {gate.gate: gate for gate in checked}


@pytest.fixture(scope="module")
def clean(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Study:
    named = {"task": "text_classification", "data": "synthetic_uti", "study": "unit", "model": str(tiny_model)}
    small = {"lora_rank": 2, "batch_size": 2, "samples_per_case": 2, "max_new_tokens": 4, "eval_batch_size": 4}
    small |= {f"{arm}_epochs": 1 for arm in TRAINED} | {"results": str(tmp_path_factory.mktemp("results"))}
    study = Study(Run(resolve(named | small)), Pairs([], {}))
    study.sft()
    study.made = make_pairs(study.run.params, TASK, SPLITS.prefer, study.sample())
    study.run.keep("splits", SPLITS)
    study.run.keep("pairs", study.made.pairs)
    study.dpo()
    for arm in CONTROLS:
        study.control(arm)
    for arm in ("base", *TRAINED):
        study.answer(arm)
    return study


def sft_rows(rewrite: Change) -> Plant:
    """SFT that is given other rows."""

    def rewritten(trainer: Any) -> None:
        trainer.train_dataset = trainer.train_dataset.map(rewrite)

    return lambda study, _: study.sft(spoilt(SFTTrainer, rewritten))


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


def padded(change: Callable[[torch.Tensor, torch.Tensor], Any]) -> Plant:
    """Answers to batches whose token ids and mask are others."""
    pad = decoding._left_pad

    def plant(study: Study, patched: pytest.MonkeyPatch) -> None:
        patched.setattr(decoding, "_left_pad", lambda *given: change(*pad(*given)))
        study.answer("dpo")

    return plant


def to_the_right(ids: torch.Tensor, mask: torch.Tensor) -> list[torch.Tensor]:
    lengths = mask.sum(1).tolist()
    return [torch.stack([row.roll(n) for row, n in zip(part, lengths, strict=True)]) for part in (ids, mask)]


def other_temperature(study: Study, patched: pytest.MonkeyPatch) -> None:
    patched.setattr(generation, "Decoding", lambda *given: decoding.Decoding(*given[:3], 0.3, *given[4:]))
    study.sample()


def only_pair(**fields: str) -> Plant:
    def plant(study: Study, _: Any) -> None:
        study.made = dataclasses.replace(study.made, pairs=[dataclasses.replace(study.made.pairs[0], **fields)])

    return plant


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


def splits(**parts: list[Case]) -> Plant:
    return lambda study, _: setattr(study, "splits", dataclasses.replace(SPLITS, **parts))


def texts_of_test(text: Callable[[int, Case], str]) -> Plant:
    return splits(test=[dataclasses.replace(case, text=text(i, case)) for i, case in enumerate(SPLITS.test)])


#: Gate -> faults that it must see, and how each is planted.
FAULTS: dict[str, dict[str, Plant]] = {
    "reference is the SFT model": {
        "another reference": lambda s, _: s.dpo(spoilt(DPOTrainer, other_reference)),
    },
    "one BOS, trained end token": {
        "end token not trained": lambda s, _: s.sft(spoilt(SFTTrainer, taken_for_padding)),
        "two BOS": sft_rows(lambda row: {name: [row[name][0], *row[name]] for name in IDS}),
        "rows that TRL cuts": lambda s, _: s.sft(max_length=s.run.stages["sft"].facts["longest"] - 1),
    },
    "asked as trained": {
        "loss on the prompt": sft_rows(lambda row: {"labels": row["input_ids"]}),
        "another prompt than trained": lambda s, _: s.answer("dpo", task=worded(lambda text, _: f"Think. {text}")),
        "padding that the model reads": padded(lambda ids, mask: (ids, torch.ones_like(mask))),
    },
    "trained on its answers": {
        "answers of other cases": lambda s, _: s.sft(rows=lambda cases: cases[1:] + cases[:1]),
        "other sides than were audited": lambda s, _: s.dpo(pairs=exchanged),
    },
    "no row lost or cut": {
        "a row lost": lambda s, _: s.sft(
            spoilt(SFTTrainer, lambda t: setattr(t, "train_dataset", t.train_dataset.select(range(7))))
        ),
    },
    "only the adapter moved": {"a base weight that trains": lambda s, _: s.dpo(spoilt(DPOTrainer, freed))},
    "no dropout": {
        "dropout in the policy": lambda s, _: s.sft(
            lora=dataclasses.replace(lora_config(s.run.params), lora_dropout=0.1)
        ),
    },
    "the controls learnt": {
        "a rate of 1e-6": lambda s, _: s.control(rate=1e-6),
        "destroyed": lambda s, _: told(s, "sft_more", first_loss=0.2, last_loss=2.4),
        "far worse than SFT on validation": lambda s, _: s.run.tried.update(
            sft=[SCORE | {"score": 0.77}], sft_more=[SCORE]
        ),
    },
    "eval mode, greedy, left padding": {"padding on the right": padded(to_the_right)},
    "each arm answers by its own adapter": {
        "answers of DPO by the SFT adapter": lambda s, _: s.answer("dpo", by="sft"),
    },
    "adapter reloads": {"an adapter on another base": other_weights},
    "batch size does not matter": {"padding counts": lambda s, _: told(s, "answers_sft", changed_by_batching=8)},
    "samples are the SFT model's": {"another temperature": other_temperature},
    "pairs from preference cases only": {
        "two equal sides": only_pair(chosen="yes", rejected="Yes."),
        "pairs of test cases": only_pair(case_id="case200"),
    },
    "chosen is right, rejected is wrong": {
        "exchanged": lambda s, _: s.dpo(pairs=exchanged),
        "rejected is right": lambda s, _: s.dpo(pairs=rejecting(lambda pair: pair.chosen)),
        "rejected is gibberish": lambda s, _: s.dpo(pairs=rejecting(lambda pair: "xq zz")),
        "exchanged labels": lambda s, _: from_labels(s, exchanged),
    },
    "splits are disjoint": {
        "a patient in two splits": splits(validation=[dataclasses.replace(SPLITS.test[0], case_id="again")]),
    },
    "no test text is trained on": {
        "half of the test copied": texts_of_test(lambda i, case: SPLITS.train[i].text if i % 2 else case.text),
        "a test that is nearly trained": texts_of_test(lambda i, _: f"{SPLITS.prefer[i].text} now"),
    },
    "the prompt holds no answer": {
        "label in the text": texts_of_test(lambda _, case: f"{case.text}, answer: {case.gold['label']}"),
        "label in the prompt": lambda s, _: setattr(
            s, "task", worded(lambda text, case: f"{case.gold['label']} {text}")
        ),
    },
}


def failed(checked: dict[str, Gate]) -> set[str]:
    """Gates that failed, each with words that say what it means."""
    assert all(gate.passed != (len(gate.reason.split()) > 5) for gate in checked.values())
    return {name for name, gate in checked.items() if not gate.passed}


def test_a_clean_study_passes_every_gate(clean: Study) -> None:
    checked = clean.gates()
    assert failed(checked) == set()
    assert list(FAULTS) == list(checked)  # and each is seen red below
    page = gates.gates_table(list(checked.values())).to_html()
    assert page.count("passed") > len(gates.CHECKS) and "FAILED" not in page
    json.dumps([vars(gate) for gate in checked.values()])


@pytest.mark.parametrize(("gate", "fault"), [(gate, fault) for gate, faults in FAULTS.items() for fault in faults])
def test_a_planted_fault_is_seen(
    gate: str, fault: str, clean: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = clean.elsewhere(tmp_path)
    FAULTS[gate][fault](study, monkeypatch)
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


def test_few_cases_of_a_private_source_are_counted_by_no_gate() -> None:
    """One rejected answer that could not be read, one shared patient and a score of 8 cases stood in gates.json."""
    cases, few = made_up(0, 40), "< 11"
    rejected = ["xq zz", *({"yes": "no", "no": "yes"}[TASK.target(case)] for case in cases[1:])]
    sides = [(case, text) for case, wrong in zip(cases, rejected, strict=True) for text in (TASK.target(case), wrong)]
    facts = {"first_loss": 1.0, "last_loss": 0.5, "moved": 1.0}
    audit = {"identical pairs left": 1, "pairs from other cases": 0, "pairs from groups of other splits": 12}
    seen = {"task": TASK, "own_errors": False, "taught": {"dpo": sides}, "learnt": {"dpo": sides}}
    seen |= {"pairs_audit": pd.DataFrame({"value": audit}), "splits": Splits(cases, [], [], cases[:1])}
    seen |= {"trained": {"sft_more": facts}}
    seen |= {"tried": {arm: [SCORE | {"n": 8}] for arm in ("sft", "sft_more")}}
    told = {
        "chosen is right, rejected is wrong": {"pairs": 40, "rejected is no answer": few},
        "pairs from preference cases only": {"identical pairs left": few, "pairs from groups of other splits": 12},
        "splits are disjoint": {"shared cases or groups": few},
        "the controls learnt": {"sft_more": {"loss on its rows": "1.000 to 0.500", "validation": checks.FEW}},
    }
    for name, value in told.items():
        private, public = (checks.CHECKS[name][2](SimpleNamespace(**seen, shareable=s)) for s in (False, True))
        assert private[0] == public[0] and few not in str(public[1]) and checks.FEW not in str(public[1])
        assert {what: one for what, one in private[1].items() if one} == value


@pytest.mark.parametrize("offered", [True, False])
def test_an_answer_among_options_is_not_told(offered: bool) -> None:
    """Seen once: multiple choice, where the right answers of the test alone were looked for, was called a leak."""
    cases = []
    for i, name in enumerate(WORDS[:8]):
        details = {"options": {"A": name, "B": f"no such {i}"}} if offered else {}
        cases.append(Case(f"c{i}", f"g{i}", f"Which? {name} or no such {i}", {"label": name}, details))
    _, _, check = checks.CHECKS["the prompt holds no answer"]
    assert check(SimpleNamespace(task=TASK, splits=Splits([], [], [], cases)))[0] is offered
