"""The one shape of a task: words for a case, the right answer in words, and back."""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, ClassVar, Literal

from medstudy.data.cases import Case
from medstudy.tasks.reading import normalise

if TYPE_CHECKING:
    from medstudy.data.card import DataCard

Message = dict[str, str]


@dataclass(frozen=True)
class Metric:
    """One number for an arm; ``name`` is its key in metrics.json, ``primary`` says that the verdict rests on it.

    ``kind``: ``f1``; ``share`` of all cases or ``share_of_parsed`` ones; ``mean`` of a per-case score; ``auroc``, the
    share of pairs of a positive and a negative case that the score puts in order.
    """

    name: str
    kind: Literal["f1", "share", "share_of_parsed", "mean", "auroc"]
    source: str  # outcome that is compared (f1; empty: the only one with labels), or per-case column that is averaged
    primary: bool = False
    label: str | None = None  # F1 of this label; None: macro mean
    bounded: bool = True  # values lie in [0, 1]
    optional: bool = False  # left out where the table has no column `source`


ACCURACY = (Metric("accuracy", "share", "score_correct"), Metric("accuracy_parsed", "share_of_parsed", "score_correct"))
UNPARSED = Metric("unparsed", "share", "unparsed")


@dataclass(frozen=True)
class Answer:
    """What was understood of a model's output: ``value`` maps each outcome to its answer.

    ``unparsed``: no answer was found, or two; ``out_of_range``: one that is not allowed. Then ``value`` is empty and
    the case counts as wrong. ``exact`` is false where an answer was not in the asked-for form.
    """

    status: Literal["parsed", "unparsed", "out_of_range"]
    value: Mapping[str, str] = field(default_factory=dict)
    exact: bool = True


class Task(ABC):
    """A task, worded by a data card."""

    kind: ClassVar[Literal["classification", "open-ended"]] = "open-ended"  # those that the published claim tells apart
    outcomes: ClassVar[tuple[str, ...]] = ()  # what a case is asked for; empty: one, which the card names
    open_outcomes: ClassVar[tuple[str, ...]] = ()  # those of them that are answered in free words
    metrics: ClassVar[tuple[Metric, ...]]

    def __init__(self, card: DataCard) -> None:
        self.card = card
        names = [name for name in self.outcomes or card.labels if name not in self.open_outcomes]
        self.labels = {name: card.labels[name] for name in names}

    @abstractmethod
    def prompt(self, case: Case) -> str:
        """The user turn that every arm is given."""

    @abstractmethod
    def target(self, case: Case) -> str:
        """The gold assistant turn, in the form that `parse` reads."""

    @abstractmethod
    def parse(self, text: str) -> Answer:
        """Read a model's output; never raises."""

    def score(self, answer: Answer, case: Case) -> dict[str, float]:
        """Per-case scores; ``correct`` (0 or 1), by default of all labels, decides what a preference pair rejects."""
        right = {name: float(answer.value.get(name) == case.gold[name]) for name in self.labels}
        return (right if len(right) > 1 else {}) | {"correct": float(all(right.values()))}

    def wrong_answers(self, case: Case, cases: list[Case], rng: random.Random) -> list[str]:
        """Answers in the right form that are wrong for ``case``, in random order; ``cases`` may lend theirs.

        By default one label is wrong and the rest as in gold.
        """
        gold = case.gold
        wrong = [{**gold, o: label} for o, labels in self.labels.items() for label in labels if label != gold[o]]
        return [self.target(replace(case, gold=other)) for other in rng.sample(wrong, len(wrong))]

    def understood(self, text: str, value: Mapping[str, str]) -> Answer:
        """``value`` as the answer; exact where each line of the asked-for form stands in ``text`` as a line."""
        form = self.target(Case("", "", "", value)).splitlines()
        exact = {normalise(line) for line in form} <= {normalise(line) for line in text.splitlines()}
        return Answer("parsed", value, exact)

    def messages(self, case: Case, examples: list[Case] | None = None) -> list[Message]:
        """The prompt as chat turns; worked examples, if any, come first."""
        turns = []
        for one in examples or []:
            turns += [{"role": "user", "content": self.prompt(one)}, {"role": "assistant", "content": self.target(one)}]
        return [*turns, {"role": "user", "content": self.prompt(case)}]
