"""The five tasks. A new one is a file here, a line below, a notebook and a data card (docs/new_task.md)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from medstudy.data.cases import DataError
from medstudy.tasks.base import Task
from medstudy.tasks.clinical_reasoning import ClinicalReasoning
from medstudy.tasks.labels import Classification, ClinicalTriage
from medstudy.tasks.summarization import Summarization

if TYPE_CHECKING:
    from medstudy.data.card import DataCard

TASK_TYPES: dict[str, type[Task]] = {
    "text_classification": Classification,
    "numeric_classification": Classification,
    "clinical_reasoning": ClinicalReasoning,
    "summarization": Summarization,
    "clinical_triage": ClinicalTriage,
}


def get_task(name: str, card: DataCard) -> Task:
    """The task ``name``, worded by ``card``; a card of another task is a `DataError`."""
    if card.task != name:
        raise DataError(f"data card '{card.name}' is for the task {card.task}, not {name}; choose another `data`")
    return TASK_TYPES[name](card)
