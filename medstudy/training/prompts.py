"""From cases to prompts that fit: rows for the trainers, token counts, the context limit."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from medstudy.data.cases import Case, DataError
from medstudy.params import RunParams
from medstudy.show import OWN
from medstudy.tasks.base import Message, Task
from medstudy.training.chat import Chat, Row

if TYPE_CHECKING:
    import pandas as pd


def sft_row(task: Task, case: Case, answer: str = "") -> Row:
    """A prompt/completion row: in this form TRL puts the loss on the completion only.

    ``answer``: the completion; by default the recorded one (`Case.demonstration`), else gold.
    """
    said = answer or task.target(case.recorded())
    return {"prompt": task.messages(case), "completion": [{"role": "assistant", "content": said}]}


def token_table(chat: Chat, messages: list[Message], answer: str) -> pd.DataFrame:
    """One row a token of prompt and answer: the token and whether it carries SFT loss."""
    import pandas as pd

    prompt, completion = chat.row(messages, answer)
    rows = [(i, chat.tokenizer.decode([t]), i >= len(prompt)) for i, t in enumerate(prompt + completion)]
    return pd.DataFrame(rows, columns=["position", "token", "in_loss"])


@dataclass(frozen=True)
class Lengths:
    """Tokens of each case's prompt and of the answer allowed for; what the context forced is counted."""

    prompt: list[int]
    answer: list[int]
    excluded: int = 0
    truncated: int = 0
    answer_cut: int = 0

    @property
    def longest(self) -> int:
        """Tokens of the longest prompt plus the longest answer."""
        return max(self.prompt) + max(self.answer)

    @property
    def counts(self) -> dict[str, int]:
        """Cases that the context left out or shortened, and gold answers that could not be given whole."""
        return {
            "excluded": self.excluded,
            "truncated": self.truncated,
            "gold answer too long": self.answer_cut,
        }

    def table(self) -> pd.DataFrame:
        """Quantiles of the token counts, and how many cases do not fit and how."""
        import pandas as pd

        quantiles = {"median": 0.5, "95 %": 0.95, "longest": 1.0}
        rows = {
            name: {label: int(pd.Series(values).quantile(q)) for label, q in quantiles.items()}
            for name, values in (("prompt tokens", self.prompt), ("tokens kept for the answer", self.answer))
        }
        table = pd.DataFrame(rows).T.assign(**self.counts)
        table.attrs[OWN] = True
        return table


def fit_context(cases: list[Case], task: Task, chat: Chat, params: RunParams) -> tuple[list[Case], Lengths]:
    """Cases whose prompt and answer fit the model's context, and their lengths.

    What happens to the others is the parameter ``overlong``: an error, exclusion, or a shortened text.
    Both remedies are counted, and hold for every arm alike. A gold answer longer than ``max_new_tokens``
    could never be given whole: that too is an error, or counted.

    Raises:
        DataError: a case or a gold answer does not fit and ``overlong`` is ``error``, or no case fits.
    """
    kept, prompts, answers, excluded, truncated, cut = [], [], [], 0, 0, 0
    golds = [len(chat.row(task.messages(case), task.target(case))[1]) for case in cases]
    longest, few = max(golds, default=0), params.max_new_tokens
    if longest > few and params.overlong == "error":
        name = f", that of case {cases[golds.index(longest)].case_id}," if task.card.shareable else ""
        raise DataError(
            f"{sum(gold > few for gold in golds)} of {len(golds)} gold answers could never be given: the longest{name}"
            f" needs {longest} tokens with its end token, max_new_tokens is {few}; set max_new_tokens = {longest}"
        )
    for case, gold in zip(cases, golds, strict=True):
        answer = max(gold, params.max_new_tokens)
        room = chat.context - answer
        prompt = len(chat.prompt(task.messages(case)))
        if prompt > room and params.overlong == "error":
            name = f"case {case.case_id}" if task.card.shareable else "a case"
            raise DataError(
                f"{name} needs {prompt} tokens and its answer {answer}, but the context of "
                f"{params.model} holds {chat.context}; set overlong to truncate or exclude"
            )
        if prompt > room and params.overlong == "truncate":
            case = _shorten(case, task, chat, room)
            prompt, truncated = len(chat.prompt(task.messages(case))), truncated + 1
        if prompt > room:
            excluded += 1
            continue
        kept.append(case)
        cut += gold > params.max_new_tokens
        prompts.append(prompt)
        answers.append(answer)
    if not kept:
        raise DataError(f"no case fits into the {chat.context} tokens of {params.model}'s context")
    return kept, Lengths(prompts, answers, excluded, truncated, cut)


def worked_examples(
    train: list[Case],
    lengths: Lengths,
    task: Task,
    chat: Chat,
    params: RunParams,
) -> list[Case]:
    """Up to ``few_shot_k`` training cases to show in the few-shot prompt, drawn by ``seed``, as they were recorded.

    The shorter half of the cases is drawn from, and fewer are taken where k do not fit the context
    beside the longest prompt.
    """
    by_length = sorted(train, key=lambda case: len(case.text))[: max(len(train) // 2, params.few_shot_k)]
    drawn = random.Random(params.seed).sample(by_length, min(params.few_shot_k, len(by_length)))
    drawn = [case.recorded() for case in drawn]
    room = chat.context - lengths.longest
    # a newline or two stand behind each turn
    turns = [chat.row(task.messages(case), task.target(case)) for case in drawn]
    while drawn and sum(len(prompt) + len(answer) + 2 for prompt, answer in turns[: len(drawn)]) > room:
        drawn.pop()
    return drawn


def _shorten(case: Case, task: Task, chat: Chat, room: int) -> Case:
    """Drop words from the end of the case's text until its prompt fits; instructions stay whole."""
    words = case.text.split(" ")
    low, high = 0, len(words)
    while low < high:
        middle = (low + high + 1) // 2
        shorter = replace(case, text=" ".join(words[:middle]))
        fits = len(chat.prompt(task.messages(shorter))) <= room
        low, high = (middle, high) if fits else (low, middle - 1)
    return replace(case, text=" ".join(words[:low]))
