"""What a run left behind, read once for its gates: what was trained, asked, answered and measured."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from medstudy.arms import TRAINED
from medstudy.data.cases import Case
from medstudy.runs import Run, fingerprint
from medstudy.tasks.base import Task
from medstudy.tasks.reading import normalise
from medstudy.training.chat import load_chat
from medstudy.training.fit import LEARNT
from medstudy.training.generation import OUTPUTS, adapter_hash

if TYPE_CHECKING:
    from medstudy.data.splits import Splits

Facts = Mapping[str, Mapping[str, Any]]
#: Arm -> for each sequence of its training, or each of its answers, something that is told of it.
Rows = Mapping[str, Sequence[Any]]


@dataclass(frozen=True)
class Gate:
    """One check: what was seen (``value``), what must hold (``expected``), what its failing means and what to do."""

    gate: str
    passed: bool
    value: Any
    expected: str
    reason: str = ""


def judge(gate: str, passed: bool, value: Any, expected: str, reason: str) -> Gate:
    """A gate with its reason where it failed."""
    return Gate(gate, bool(passed), value, expected, "" if passed else reason)


@dataclass(frozen=True)
class Seen:
    """What a run left behind, and what its cases say should be there.

    Attributes:
        facts: stage -> what was measured of it.
        cases: arm -> the case of each sequence that it was trained on.
        sides: arm that is trained on pairs -> the answer of each of these sequences.
        prompts, said: arm -> fingerprint of the prompt, and text, of each sequence that its trainer was given.
        wanted: arm or answers -> the prompt that each case makes, in tokens, as fingerprint.
        asked: arm -> fingerprint of each test prompt as the model read it.
        samples: preference case -> what the SFT model answered to it.
        adapters: arm -> hash of the adapter that it was trained to.
        tried: arm -> its candidates and their scores on validation cases.
    """

    facts: Facts
    cases: Mapping[str, Sequence[Case]]
    sides: Rows
    prompts: Rows
    said: Rows
    wanted: Rows
    asked: Rows
    samples: Mapping[str, set[str]]
    adapters: Mapping[str, str]
    tried: Mapping[str, Sequence[Mapping[str, Any]]]

    @property
    def trained(self) -> Facts:
        """Facts of the arms that were trained for at least a step."""
        return {arm: self.facts[arm] for arm in TRAINED if self.facts.get(arm, {}).get("steps")}

    @property
    def decoded(self) -> Facts:
        """Facts of the answers of each arm."""
        return {k.removeprefix("answers_"): f for k, f in self.facts.items() if k.startswith("answers_")}


def see(run: Run, task: Task, splits: Splits) -> Seen:
    """Read what the stages kept."""
    import pandas as pd

    stages = {name: stage for name, stage in run.stages.items() if stage.done}
    of = {case.case_id: case for case in splits.all()}
    pairs = [pair for pair in run.kept.get("pairs", []) if pair.case_id in of]
    sides = [(pair, side) for pair in pairs for side in (pair.chosen, pair.rejected)]
    cases = {"sft": [case.recorded() for case in splits.train], "sft_more": splits.prefer}
    cases |= {"sft_chosen": [of[p.case_id] for p in pairs], "dpo": [of[pair.case_id] for pair, _ in sides]}
    files = {arm: stages[arm].folder / LEARNT for arm in TRAINED if arm in stages}
    learnt = {arm: json.loads(f.read_text(encoding="utf-8")) for arm, f in files.items() if f.is_file()}
    outputs = {k: pd.read_parquet(stages[k].folder / OUTPUTS) for k in stages if k.startswith("answers_")}
    drawn = pd.read_parquet(stages["samples"].folder / OUTPUTS)["outputs"] if "samples" in stages else []
    chat = load_chat(run.params)
    ids = {case_id: fingerprint(chat.prompt(task.messages(case))) for case_id, case in of.items()}
    wanted = {arm: [ids[case.case_id] for case in some] for arm, some in cases.items()}
    return Seen(
        facts={name: stage.facts for name, stage in stages.items()},
        cases=cases,
        sides={"sft_chosen": [pair.chosen for pair in pairs], "dpo": [side for _, side in sides]},
        prompts={arm: [prompt for prompt, _ in rows] for arm, rows in learnt.items()},
        said={arm: [text for _, text in rows] for arm, rows in learnt.items()},
        wanted=wanted | {"test": [ids[case.case_id] for case in splits.test]},
        asked={name.removeprefix("answers_"): list(table["asked"]) for name, table in outputs.items()},
        samples={c.case_id: set(map(normalise, t)) for c, t in zip(splits.prefer, drawn, strict=False)},
        adapters={arm: adapter_hash(stages[arm]) for arm in TRAINED if arm in stages},
        tried=run.tried,
    )
