"""Checks without which the arms' numbers mean nothing. A failed one marks the run and its verdict.

What is merely a result (DPO learnt little, the chosen answers became less likely) is no gate.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
from pandas.io.formats.style import Styler

from medstudy.arms import ARMS, TRAINED
from medstudy.data.audit import near_duplicates
from medstudy.data.splits import Splits
from medstudy.files import fingerprint, read_json
from medstudy.runs import Run
from medstudy.show import aggregate
from medstudy.tasks.base import Task
from medstudy.tasks.reading import normalise
from medstudy.training.chat import load_chat
from medstudy.training.checks import CHECKS
from medstudy.training.fit import LEARNT
from medstudy.training.generation import OUTPUTS, adapter_hash


@dataclass(frozen=True)
class Gate:
    """One check: what was seen (``value``), what must hold (``expected``), what its failing means and what to do."""

    gate: str
    passed: bool
    value: Any
    expected: str
    reason: str = ""


class Seen:
    """What a run left behind, read once, and what its cases say should be there.

    Attributes:
        facts: stage -> what was measured; ``trained`` of arms trained for a step or more, ``decoded`` of their answers.
        learnt: arm -> fingerprint of the prompt, and text, of each sequence that its trainer was given.
        taught: arm -> case and answer that each of these should be.
        asked: arm -> fingerprint of each test prompt as the model read it; ``prompt``: case id -> what it should be.
        samples: preference case -> what the SFT model answered to it.
        adapters: arm -> hash of the adapter that it was trained to.
    """

    def __init__(
        self, run: Run, task: Task, splits: Splits, data_audit: pd.DataFrame, pairs_audit: pd.DataFrame
    ) -> None:
        self.task, self.splits, self.pairs_audit, self.tried = task, splits, pairs_audit, run.tried
        self.near, self.shareable = near_duplicates(data_audit), run.facts.get("shareable", False)
        self.own_errors = run.params.pair_source == "own_errors"
        stages = {name: stage for name, stage in run.stages.items() if stage.done}
        self.facts = {name: stage.facts for name, stage in stages.items()}
        self.trained = {arm: self.facts[arm] for arm in TRAINED if self.facts.get(arm, {}).get("steps")}
        answers = {name.removeprefix("answers_"): made for name, made in stages.items() if name.startswith("answers_")}
        self.decoded = {arm: stage.facts for arm, stage in answers.items()}
        self.asked = {arm: list(pd.read_parquet(made.folder / OUTPUTS)["asked"]) for arm, made in answers.items()}
        drawn = pd.read_parquet(stages["samples"].folder / OUTPUTS)["outputs"] if "samples" in stages else []
        self.samples = {c.case_id: set(map(normalise, t)) for c, t in zip(splits.prefer, drawn, strict=False)}
        self.adapters = {arm: adapter_hash(stages[arm]) for arm in TRAINED if arm in stages}
        self.learnt = {arm: read_json(stages[arm].folder / LEARNT) for arm in self.trained}
        chat, of = load_chat(run.params), {case.case_id: case for case in splits.all()}
        self.prompt = {name: fingerprint(chat.prompt(task.messages(case))) for name, case in of.items()}
        pairs = [(of[pair.case_id], pair) for pair in run.kept.get("pairs", []) if pair.case_id in of]
        rows: dict[str, list[Any]] = {
            "train": [(case, task.target(case.recorded())) for case in splits.train],
            "prefer": [(case, task.target(case)) for case in splits.prefer],
            "chosen": [(case, pair.chosen) for case, pair in pairs],
            "pairs": [(case, side) for case, pair in pairs for side in (pair.chosen, pair.rejected)],
        }
        self.taught = {arm: rows[ARMS[arm].rows] for arm in TRAINED}


def check_gates(
    run: Run, task: Task, splits: Splits, data_audit: pd.DataFrame, pairs_audit: pd.DataFrame
) -> list[Gate]:
    """All gates, of what stages measured and kept and the two audits found; one whose stage was not run fails."""
    seen, judged = Seen(run, task, splits, data_audit, pairs_audit), []
    for name, (expected, needs, check) in CHECKS.items():
        needed = [stage for stage in needs if stage != "samples" or seen.own_errors]
        if lacking := ", ".join(stage for stage in needed if stage not in seen.facts):
            reason = f"nothing can be said of it without {lacking}: run these cells, and this one again"
            good, value = False, f"not run: {lacking}"
        else:
            (good, value), reason = check(seen), " ".join(check.__doc__.split())
        judged.append(Gate(name, bool(good), value, expected, "" if good else reason))
    return judged


def gates_table(gates: Sequence[Gate]) -> Styler:
    """What was seen and what must hold, whole, a row a gate."""

    def words(value: Any) -> str:
        if isinstance(value, Mapping):
            return "; ".join(f"{name}: {words(one)}" for name, one in value.items())
        return ", ".join(map(words, value)) if isinstance(value, list) else str(value)

    table = pd.DataFrame(map(vars, gates)).rename(columns={"value": "seen", "expected": "must hold"})
    table["passed"] = table["passed"].map({True: "passed", False: "FAILED"})
    table["seen"] = table["seen"].map(words) + table.pop("reason").map(lambda why: f" ({why})" if why else "")
    return aggregate(table.style.hide(axis="index"), ["", *table])  # unlike a plain table, it cuts no text off
