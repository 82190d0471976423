"""The one place that renders a chat: what is asked, what is trained, where an answer ends and how it is read."""

from __future__ import annotations

import re
from datetime import date
from os.path import commonprefix
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from medstudy.params import RunParams
from medstudy.tasks.base import Message
from medstudy.tasks.reading import said
from medstudy.training.checkpoint import ModelError, model_fingerprint
from medstudy.training.models import context_length, load_tokenizer, stop_tokens, vocabulary

Row = dict[str, list[Message]]


def turn(text: str) -> list[Message]:
    """An answer as the turn of a `Row`."""
    return [{"role": "assistant", "content": text}]


#: The day that templates with a date are told: with today's, a run that goes on tomorrow would mix two prompts.
DAY = date(2024, 7, 26)
#: Template arguments of all families; a template leaves alone what it does not know. No model thinks aloud.
ARGUMENTS = {"enable_thinking": False, "thinking": False, "reasoning_effort": "low"}
ARGUMENTS |= {"date_string": DAY.strftime("%d %b %Y")}
#: How templates ask for today's date; a form that is not written out there cannot be replaced.
_TODAY = re.compile(r"""strftime_now\(\s*(["'])(.*?)\1\s*\)""")
#: Templates that were taken apart in this process, by model and its fingerprint.
_CHATS: dict[tuple[str, str], Chat] = {}
_ASKED, _ANSWERED = "medstudy asks", "medstudy answers"
_TURNS = [{"role": "user", "content": _ASKED}, *turn(_ANSWERED), {"role": "user", "content": "?"}]
#: A long note with signs that a template may escape or cut.
_NOTE = 'Ärztin & "Co": <38.5>\n\n' + " ".join(map(str, range(2000)))


class Chat:
    """A checkpoint's chat template, taken apart once: prompts, rows and labels are made of the same pieces.

    What the template writes between its prompt and the answer of any row (an empty thought, the name of a channel)
    belongs to the prompt; a thought that it opens is closed, empty. A row ends with the token ``end``, at which
    generation stops too, as at the checkpoint's other ``stops``; ``context`` is how many tokens the model can hold.

    Raises:
        ModelError: no prompt of this template begins its rows, or nothing ends its answers.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, stops: tuple[int, ...] = (), source: str = "", context: int = 0
    ) -> None:
        self.tokenizer, self.context, self._source = tokenizer, context, source
        added = {t.content: t.special for t in tokenizer.added_tokens_decoder.values() if t.content.strip()}
        control = [re.escape(text) for text, special in added.items() if special or re.fullmatch(r"<\S+>", text)]
        self._control = re.compile("|".join(sorted(control, key=len, reverse=True)) or "(?!)")
        asked, row = self._examine()
        before, _, after = row.partition(_ANSWERED)
        same = len(commonprefix([asked, before]))
        unasked, untrained = before[same:], asked[same:]
        if not re.fullmatch(r"\s*(<think(ing)?>)?\s*(</think(ing)?>)?\s*", untrained):
            reason = f"it asks for an answer with {untrained!r}, which none of its rows holds"
            raise self.refused(reason, "make both the same there")
        self._cut = untrained
        if untrained.strip():
            self._cut = unasked = ""  # rows without the thought that prompts begin: it stays, and stays empty
        self.added = unasked.rstrip(" ")
        self._lead = unasked[len(self.added) :]  # to most tokenizers a blank is part of the word behind it
        thought = re.search(r"<(think(?:ing)?)>\s*$", asked.removesuffix(self._cut) + self.added)
        if thought:
            self.added += f"\n</{thought[1]}>\n\n"
        self.end, self._tail = self._find_end(after, stops)
        self.stops = tuple(sorted({*stops, self.end}))

    def prompt(self, messages: list[Message]) -> list[int]:
        """Token ids of what is asked, up to where the answer begins."""
        return self.ids(self._prompt(messages))

    def row(self, messages: list[Message], answer: str) -> tuple[list[int], list[int]]:
        """Token ids of a prompt and of its completion: the answer and the token that ends it. A row is the two."""
        asked = self._prompt(messages)
        completion = self._lead + self._harmless(answer.strip()) + self._tail
        prompt, whole = self.ids(asked), self.ids(asked + completion)
        if whole[: len(prompt)] == prompt:
            return prompt, whole[len(prompt) :]
        return prompt, self.ids(completion)  # a token would reach over the border, where none can be asked for

    def trained(self, row: Row) -> dict[str, list[int]]:
        """A row of chat messages in the tokens that a trainer takes; TRL then renders nothing."""
        sides = [side for side in ("completion", "chosen", "rejected") if side in row]
        (prompt, first), *other = (self.row(row["prompt"], row[side][0]["content"]) for side in sides)
        if not other:
            return {"input_ids": prompt + first, "labels": [-100] * len(prompt) + first}
        return {"prompt_ids": prompt, "chosen_ids": first, "rejected_ids": other[0][1]}

    def read(self, ids: list[int]) -> str:
        """The answer in generated token ids: up to the first stop token, without special tokens and thoughts."""
        end = next((i for i, token in enumerate(ids) if token in self.stops), len(ids))
        added = self.tokenizer.added_tokens_decoder
        special = {i for i, t in added.items() if t.special and t.content.strip() and "think" not in t.content.lower()}
        kept = [i for i in ids[:end] if i not in special]
        return said(self.tokenizer.decode(kept, clean_up_tokenization_spaces=False))

    def refused(self, reason: str, remedy: str) -> ModelError:
        """The error for a template that a study cannot use."""
        return ModelError(
            f"model = {self._source!r}, chat template: {reason}; {remedy} (chat_template of the tokenizer), or choose "
            "another instruct model"
        )

    def _prompt(self, messages: list[Message]) -> str:
        return self._render(messages, add_generation_prompt=True).removesuffix(self._cut) + self.added

    def _render(self, messages: list[Message], **how: Any) -> str:
        messages = [turn | {"content": self._harmless(turn["content"])} for turn in messages]
        how |= {"chat_template": self._template, "tokenize": False, **ARGUMENTS}
        try:
            return self.tokenizer.apply_chat_template(messages, **how)
        except (TemplateError, TypeError, ValueError, KeyError) as error:
            raise self.refused(f"it fails on turns of user and assistant ({error})", "mend it") from None

    def _harmless(self, text: str) -> str:
        """A text that holds what the tokenizer takes for a control token (``</s>``): a blank keeps it a text."""
        return self._control.sub(lambda token: f"{token[0][0]} {token[0][1:]}", text)

    def ids(self, text: str) -> list[int]:
        """Token ids of a text as it stands."""
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def _examine(self) -> tuple[str, str]:
        """A prompt and a row of known content."""
        if not self.tokenizer.chat_template:
            raise self.refused("it has none", "choose an instruct model")
        self._template = _TODAY.sub(lambda call: repr(DAY.strftime(call[2])), self.tokenizer.get_chat_template())
        if "strftime_now(" in self._template:
            raise self.refused("it writes today's date, so that no two days ask alike", "write a fixed date")
        asked, row = self._render(_TURNS[:1], add_generation_prompt=True), self._render(_TURNS[:2])
        if _ASKED not in asked or row.count(_ANSWERED) != 1:
            raise self.refused("it leaves out what is asked or answered", "mend it")
        said = self._render([{"role": "user", "content": _NOTE}, *_TURNS[1::-1]], add_generation_prompt=True)
        if not re.search(f"{re.escape(_NOTE)}.*{_ANSWERED}.*{_ASKED}", said, re.DOTALL):
            raise self.refused("it cuts or changes a long text, or leaves out the turns before the last", "mend it")
        return asked, row

    def _find_end(self, after: str, stops: tuple[int, ...]) -> tuple[int, str]:
        """The first token behind an answer that stands for itself, an added one or the checkpoint's; all up to it.

        White space never does, as answers hold it. Where there is none, the next turn may begin with a token at which
        the checkpoint stops (GLM 4).
        """
        added = self.tokenizer.added_tokens_decoder
        following = self._render(_TURNS).partition(_ANSWERED)[2]
        for behind, ends in ((after, {*added, *stops}), (following, set(stops))):
            for token in self.ids(behind):
                text = added[token].content if token in added else self.tokenizer.decode([token]).strip()
                if token in ends and token != self.tokenizer.unk_token_id and text.strip() and text in behind:
                    return token, behind[: behind.index(text) + len(text)]
        raise self.refused(
            "it ends no answer with a token of its own, so that the model would never learn to stop",
            "write {{ eos_token }} behind the assistant's content",
        )


def load_chat(params: RunParams) -> Chat:
    """The model's `Chat`.

    Raises:
        ModelError: the model cannot be reached, or cannot be asked and trained by its chat template.
    """
    key = (params.model, model_fingerprint(params))
    if key not in _CHATS:
        tokenizer, known = load_tokenizer(params), vocabulary(params)
        chat = Chat(tokenizer, stop_tokens(params), params.model, context_length(params, tokenizer))
        prompt, completion = chat.row(_TURNS[:1], _ANSWERED)
        beyond = [i for i in [*prompt, *completion, tokenizer.pad_token_id] if i >= known]
        if beyond:  # an index error deep inside the model
            raise chat.refused(
                f"it writes {tokenizer.decode(beyond[:1])!r}, token {beyond[0]}, but there are embeddings for {known}",
                f"resize_token_embeddings({len(tokenizer)}) and save the model, or mend the template",
            )
        _CHATS[key] = chat
    return _CHATS[key]
