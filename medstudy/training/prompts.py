"""From cases to prompts that fit: rows for the trainers, token counts, the context limit."""

import random
from bisect import bisect
from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import accumulate

import pandas as pd

from medstudy.data.cases import Case, DataError, masked
from medstudy.params import RunParams
from medstudy.show import own
from medstudy.tasks.base import Message, Task
from medstudy.training.chat import Chat, Row, turn


def sft_row(task: Task, case: Case, answer: str = "") -> Row:
    """A prompt/completion row, with loss on the completion: ``answer``, else the recorded one, else gold."""
    return {"prompt": task.messages(case), "completion": turn(answer or task.target(case.recorded()))}


def token_table(chat: Chat, messages: list[Message], answer: str) -> pd.DataFrame:
    """One row a token of prompt and answer: the token and whether it carries SFT loss."""
    prompt, completion = chat.row(messages, answer)
    rows = [(i, chat.tokenizer.decode([t]), i >= len(prompt)) for i, t in enumerate(prompt + completion)]
    return pd.DataFrame(rows, columns=["position", "token", "in_loss"])


def unknown_words(chat: Chat, labels: Iterable[str]) -> list[str]:
    """Words of the labels that are no token of the model, which it has to spell; a small model may never learn to."""
    words = dict.fromkeys(word for label in labels for word in label.split())
    return [word for word in words if word.isalpha() and len(chat.ids(f" {word}")) > 1]


@dataclass(frozen=True)
class Lengths:
    """Tokens of each case's prompt and of the answer allowed for; cases that did not fit, and what became of them."""

    prompt: list[int]
    answer: list[int]
    excluded: int
    truncated: int
    answer_cut: int  # gold answers that could not be given whole

    @property
    def longest(self) -> int:
        return max(self.prompt) + max(self.answer)

    @property
    def counts(self) -> dict[str, int]:
        return {"excluded": self.excluded, "truncated": self.truncated, "gold answer too long": self.answer_cut}

    def table(self) -> pd.DataFrame:
        """Quantiles of the token counts, and `counts`."""
        tokens = pd.DataFrame({"prompt tokens": self.prompt, "tokens kept for the answer": self.answer})
        table = tokens.quantile([0.5, 0.95, 1]).astype(int).set_axis(["median", "95 %", "longest"])
        return own(table.T.assign(**self.counts))


def fit_context(cases: list[Case], task: Task, chat: Chat, params: RunParams) -> tuple[list[Case], Lengths]:
    """Cases whose prompt and answer fit the model's context, and their lengths; the same for every arm.

    ``overlong`` says what becomes of the others: a `DataError`, exclusion, or a shortened text. A gold answer (or a
    recorded one, for SFT) of more than ``max_new_tokens`` could never be given whole: that is an error too, or counted.
    """
    kept, truncated, few = [], 0, params.max_new_tokens
    for case, (prompt, gold) in zip(cases, _tokens(cases, task, chat, params), strict=True):
        answer = max(gold, few)
        room = chat.context - answer
        if prompt > room and params.overlong == "error":
            name = f"case {case.case_id}" if task.card.shareable else "a case"
            raise DataError(
                f"{name} needs {prompt} tokens and its answer {answer}, but the context of "
                f"{params.model} holds {chat.context}; set overlong to truncate or exclude"
            )
        if prompt > room and params.overlong == "truncate":
            case = _shorten(case, task, chat, room)
            prompt, truncated = len(chat.prompt(task.messages(case))), truncated + 1
        if prompt <= room:
            kept.append((case, prompt, answer, gold > few))
    if not kept:
        raise DataError(f"no case fits into the {chat.context} tokens of {params.model}'s context")
    fitting, prompts, answers, cut = map(list, zip(*kept, strict=True))
    return fitting, Lengths(prompts, answers, len(cases) - len(kept), truncated, sum(cut))


def _tokens(cases: list[Case], task: Task, chat: Chat, params: RunParams) -> list[tuple[int, int]]:
    """Tokens of each case's prompt, and of its longest right or recorded answer with its end token."""
    found, few = [], params.max_new_tokens
    for case in cases:
        given = [case, case.recorded()] if case.demonstration else [case]
        rows = [chat.row(task.messages(one), task.target(one)) for one in given]
        found.append((len(rows[0][0]), max(len(answer) for _, answer in rows)))
    sizes = [answer for _, answer in found]
    longest = max(sizes, default=0)
    if longest > few and params.overlong == "error":
        name = f", that of case {cases[sizes.index(longest)].case_id}," if task.card.shareable else ""
        over, of = (masked(n, task.card.shareable) for n in (sum(size > few for size in sizes), len(sizes)))
        raise DataError(
            f"{over} of {of} gold answers could never be given: the longest{name}"
            f" needs {longest} tokens with its end token, max_new_tokens is {few}; set max_new_tokens = {longest}"
        )
    return found


def _shorten(case: Case, task: Task, chat: Chat, room: int) -> Case:
    """Drop words from the end of the case's text until its prompt fits; instructions stay whole."""
    words = case.text.split(" ")

    def first(n: int) -> Case:
        return replace(case, text=" ".join(words[:n]))

    return first(bisect(range(1, len(words) + 1), room, key=lambda n: len(chat.prompt(task.messages(first(n))))))


def worked_examples(train: list[Case], lengths: Lengths, task: Task, chat: Chat, params: RunParams) -> list[Case]:
    """Up to ``few_shot_k`` of the shorter half of the training cases, drawn by ``seed``, as they were recorded.

    Fewer where k do not fit the context beside the longest prompt; a `DataError` where not one fits.
    """
    by_length = sorted(train, key=lambda case: len(case.text))[: max(len(train) // 2, params.few_shot_k)]
    drawn = random.Random(params.seed).sample(by_length, min(params.few_shot_k, len(by_length)))
    drawn, room = [case.recorded() for case in drawn], chat.context - lengths.longest
    rows = [chat.row(task.messages(case), task.target(case)) for case in drawn]
    sizes = [len(prompt) + len(answer) + 2 for prompt, answer in rows]  # a newline or two stand behind each turn
    fitting = drawn[: sum(size <= room for size in accumulate(sizes))]
    if params.few_shot_k and not fitting:
        raise DataError(
            f"few_shot_k = {params.few_shot_k}: beside the longest prompt and answer there are {room} of the "
            f"{chat.context} tokens of {params.model}'s context left, and one worked example needs {min(sizes)}; set "
            "few_shot_k = 0, which leaves the arm out"
        )
    return fitting
