"""A case: one example that every arm of a study answers."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Self

#: Smallest count of patients that a table of a private source shows.
SMALLEST_COUNT = 11


def masked(count: int, shareable: bool, below: str = "<") -> int | str:
    """A count as it may be shown: of a source that is not ``shareable``, 1 to 10 read ``< 11``."""
    return f"{below} {SMALLEST_COUNT}" if not shareable and 0 < count < SMALLEST_COUNT else count


class DataError(ValueError):
    """A data card or its data cannot be used; the message names the file, the value and the remedy."""


@dataclass(frozen=True)
class Case:
    """One example, before any wording of a prompt.

    Attributes:
        case_id: unique within the source.
        group_id: patient, note or template; no group is ever in two splits.
        text: what the model is shown (passage, serialised values, vignette, dialogue, message).
        gold: right answer per outcome, e.g. ``{"provider": "nurse", "urgency": "routine"}``.
        details: what only some tasks have, JSON-able (docs/data_cards.md).
        split: ``train``, ``prefer``, ``validation`` or ``test`` where the source fixes it, else None.
        open_outcomes: those of ``gold`` that are free words and no label of a list.
        demonstration: the answer that was given in practice, where that is not always the right one; None: gold.
    """

    case_id: str
    group_id: str
    text: str
    gold: Mapping[str, str]
    details: Mapping[str, Any] = field(default_factory=dict)
    split: str | None = None
    open_outcomes: frozenset[str] = frozenset()
    demonstration: Mapping[str, str] | None = None

    def recorded(self) -> Self:
        """The case with what was done in the place of what is right: the answer that SFT is shown."""
        return replace(self, gold=self.demonstration) if self.demonstration else self
