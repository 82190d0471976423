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

Status = Literal["parsed", "unparsed", "out_of_range"]
Message = dict[str, str]
Kind = Literal["f1", "share", "share_of_parsed", "mean", "auroc"]


@dataclass(frozen=True)
class Metric:
    """One number for an arm.

    Attributes:
        name: key in metrics.json.
        kind: ``f1``; ``share`` of all cases; ``share_of_parsed`` cases; ``mean`` of a per-case score;
            ``auroc``, the share of pairs of a positive and a negative case that the score puts in order.
        source: outcome whose labels are compared (``f1``; empty: the only one that has labels), or the
            per-case column that is averaged.
        primary: the verdict rests on it.
        label: F1 of this one label; None is the macro mean.
        bounded: values lie in [0, 1].
        optional: left out where the table has no column ``source``.
    """

    name: str
    kind: Kind
    source: str
    primary: bool = False
    label: str | None = None
    bounded: bool = True
    optional: bool = False


ACCURACY = (Metric("accuracy", "share", "score_correct"), Metric("accuracy_parsed", "share_of_parsed", "score_correct"))
UNPARSED = Metric("unparsed", "share", "unparsed")


@dataclass(frozen=True)
class Answer:
    """What was understood of a model's output: ``value`` maps each outcome to its answer.

    ``unparsed``: no answer was found, or two. ``out_of_range``: one that is not allowed. In both cases
    ``value`` is empty and the case counts as wrong. ``exact`` is false where an answer was understood that
    is not in the asked-for form.
    """

    status: Status
    value: Mapping[str, str] = field(default_factory=dict)
    exact: bool = True


class Task(ABC):
    """A task, worded by a data card. Subclasses are stateless but for the card.

    ``outcomes`` are what a case is asked for (empty: one, which the card names under ``labels``),
    ``open_outcomes`` those of them that are answered in free words and not by a label of the card;
    ``metrics`` are what the arms are measured by. ``kind`` is the kind of task that the published claim tells apart.
    """

    kind: ClassVar[Literal["classification", "open-ended"]] = "open-ended"
    outcomes: ClassVar[tuple[str, ...]] = ()
    open_outcomes: ClassVar[tuple[str, ...]] = ()
    metrics: ClassVar[tuple[Metric, ...]]

    def __init__(self, card: DataCard) -> None:
        self.card = card

    @classmethod
    def measured(cls, labels: Mapping[str, list[str]]) -> list[Metric]:
        """`metrics`, with the outcome's name, from a card's ``labels``, where the task leaves it to the card."""
        return [m if m.source else replace(m, source=next(iter(labels))) for m in cls.metrics]

    @abstractmethod
    def prompt(self, case: Case) -> str:
        """The user turn that every arm is given."""

    @abstractmethod
    def target(self, case: Case) -> str:
        """The gold assistant turn, in the form that `parse` reads."""

    @abstractmethod
    def parse(self, text: str) -> Answer:
        """Read a model's output; never raises."""

    @abstractmethod
    def score(self, answer: Answer, case: Case) -> dict[str, float]:
        """Per-case scores; ``correct`` (0 or 1) decides what a preference pair rejects."""

    @abstractmethod
    def wrong_answers(self, case: Case, cases: list[Case], rng: random.Random) -> list[str]:
        """Answers in the right form that are wrong for ``case``, in random order; ``cases`` lend theirs."""

    def understood(self, text: str, value: Mapping[str, str]) -> Answer:
        """``value`` as the answer; exact where each line of the asked-for form stands in ``text`` as a line."""
        form = self.target(Case("", "", "", value)).splitlines()
        exact = {normalise(line) for line in form} <= {normalise(line) for line in text.splitlines()}
        return Answer("parsed", value, exact)

    def messages(self, case: Case, examples: list[Case] | None = None) -> list[Message]:
        """The prompt as chat turns; worked examples, if any, come first."""
        turns = [
            {"role": role, "content": content}
            for example in examples or []
            for role, content in (("user", self.prompt(example)), ("assistant", self.target(example)))
        ]
        return [*turns, {"role": "user", "content": self.prompt(case)}]
