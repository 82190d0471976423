"""Preference pairs from the SFT model's own errors, and their audit."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from medstudy.data.cases import Case
from medstudy.prompts import Row
from medstudy.tasks.base import Task, normalise

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Pair:
    """Two answers to one training case; ``source`` says where the chosen one comes from."""

    case_id: str
    group_id: str
    prompt: list[dict[str, str]]
    chosen: str
    rejected: str
    source: str

    def row(self) -> Row:
        """The form that `DPOTrainer` reads."""
        return {
            "prompt": self.prompt,
            "chosen": [{"role": "assistant", "content": self.chosen}],
            "rejected": [{"role": "assistant", "content": self.rejected}],
        }


@dataclass(frozen=True)
class Pairs:
    """Pairs and what was counted while they were made."""

    pairs: list[Pair]
    counts: dict[str, int]

    def save(self, file: Path) -> None:
        """One JSON line a pair; holds case text, so it belongs into ``private/``."""
        lines = (json.dumps(asdict(pair), ensure_ascii=False) + "\n" for pair in self.pairs)
        file.write_text("".join(lines), encoding="utf-8")


def pairs_from_own_errors(
    task: Task, cases: list[Case], samples: list[list[str]], pairs_per_case: int
) -> Pairs:
    """Pairs of a right answer and the model's distinct wrong ones, the most frequent of these first.

    Chosen is the model's own most frequent right answer where it has one, else gold: its own is likely
    under it already, so that the pair teaches what is wrong and not another way of writing.

    Args:
        task: scores the samples (``correct``).
        cases: training cases, in the order of ``samples``.
        samples: per case, the answers that the SFT model gave at temperature 1.
        pairs_per_case: at most so many rejected answers a case.
    """
    pairs: list[Pair] = []
    counts = {
        "prompts": len(cases),
        "samples": 0,
        "wrong_samples": 0,
        "duplicates_dropped": 0,
        "identical_dropped": 0,
    }
    for case, outputs in zip(cases, samples, strict=True):
        right, wrong = _split_by_score(task, case, outputs)
        distinct = _most_frequent_first(wrong)
        counts["samples"] += len(outputs)
        counts["wrong_samples"] += len(wrong)
        counts["duplicates_dropped"] += len(wrong) - len(distinct)
        chosen, source = (_most_frequent_first(right)[0], "own") if right else (task.target(case), "gold")
        different = [text for text in distinct if normalise(text) != normalise(chosen)]
        counts["identical_dropped"] += len(distinct) - len(different)
        pairs += [
            Pair(case.case_id, case.group_id, task.messages(case), chosen, rejected, source)
            for rejected in different[:pairs_per_case]
        ]
    return Pairs(pairs, counts)


def audit_pairs(made: Pairs, test: list[Case]) -> pd.DataFrame:
    """One row a fact about the pairs; ``pairs from test cases`` and ``… groups`` must be 0. Holds no text."""
    import pandas as pd

    pairs, n = made.pairs, len(made.pairs)
    covered = len({pair.case_id for pair in pairs})
    words = [(len(p.chosen.split()), len(p.rejected.split())) for p in pairs]
    test_cases, test_groups = {c.case_id for c in test}, {c.group_id for c in test}
    longer = sum(chosen > rejected for chosen, rejected in words)
    facts = {
        "pairs": n,
        "training prompts": made.counts["prompts"],
        "prompts covered": covered,
        "samples drawn": made.counts["samples"],
        "samples that were wrong": made.counts["wrong_samples"],
        "repeated wrong samples dropped": made.counts["duplicates_dropped"],
        "identical pairs dropped": made.counts["identical_dropped"],
        "identical pairs left": sum(normalise(p.chosen) == normalise(p.rejected) for p in pairs),
        "chosen is the model's own answer": sum(p.source == "own" for p in pairs),
        "chosen is longer": longer,
        "words of chosen / words of rejected": round(_ratio(words), 2),
        "pairs from test cases": sum(p.case_id in test_cases for p in pairs),
        "pairs from test groups": sum(p.group_id in test_groups for p in pairs),
    }
    return pd.DataFrame({"value": facts}).rename_axis("pairs audit")


def _ratio(words: list[tuple[int, int]]) -> float:
    rejected = sum(r for _, r in words)
    return sum(c for c, _ in words) / rejected if rejected else float("nan")


def _split_by_score(task: Task, case: Case, outputs: list[str]) -> tuple[list[str], list[str]]:
    right: list[str] = []
    wrong: list[str] = []
    for text in outputs:
        (right if task.score(task.parse(text), case)["correct"] == 1.0 else wrong).append(text)
    return right, wrong


def _most_frequent_first(texts: list[str]) -> list[str]:
    """Distinct texts after normalisation; an empty answer cannot be a completion and is left out."""
    count: dict[str, int] = {}
    first: dict[str, str] = {}
    for text in texts:
        key = normalise(text)
        if key:
            first.setdefault(key, text)
            count[key] = count.get(key, 0) + 1
    return [first[key] for key in sorted(count, key=lambda k: -count[k])]
