"""The second net: looks in texts that may leave ``private/`` for words of the cases. What leaves is decided elsewhere.

It finds copies, not paraphrases, and says nothing of pixels: finding nothing is no proof that a text is de-identified.
"""

import html
import re
import unicodedata
from collections import defaultdict
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

#: So many words of a case in a row count as a copy; fewer, where a case's whole text has no more (at least FEWEST).
WORDS, FEWEST = 6, 4
#: Words and wording that more than this share of the groups has (and more than COMMON_GROUPS) are the form's.
COMMON_SHARE, COMMON_GROUPS = 0.2, 5
#: Never to be sent, whoever wrote it.
PATTERNS = {
    "e-mail address": r"\b[\w.+-]+@[\w-]+(\.[\w-]+)*\.[a-z]{2,}\b",
    "US social security number": r"\b\d{3}-\d{2}-\d{4}\b",
    "access token": r"\b(hf_\w{20,}|sk-[\w-]{20,}|gh[pousr]_\w{20,}|AKIA[A-Z0-9]{16})\b",
}
RULES = (f"{WORDS} words in a row of a case", "rare word of a case", "identifier, date or number of a case")
#: Letters of scripts that put no blank between words: each two neighbours are taken for a word.
_UNSPACED = r"[\u3040-\u30ff\u3400-\u9fff\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\uac00-\ud7af]"
_TOKEN = re.compile(rf"{_UNSPACED}+|\d+|[^\W\d_]+")
_HASH = re.compile(r"\b(?=[a-f]*\d)[0-9a-f]{8,}\b")
#: Dates, telephone and record numbers: two or more groups of digits, or letters and digits in one.
_NUMBERS = re.compile(
    r"\d+(?:[ ./:+()#-]{1,2}\d+)+|[a-z]+[-#/]?\d{3,}[\w-]*|\b[a-z]{1,3} \d{5,}|\d{5,}|\d+[a-z]{2,}\d*", re.IGNORECASE
)
_Span = tuple[str, ...]  # neighbouring tokens


@dataclass
class Guard:
    """What is known of the cases that may not be seen: (card, case id), and what in a text would be theirs."""

    cases: set[tuple[str, str]] = field(default_factory=set)
    copies: set[int] = field(default_factory=set)
    words: set[str] = field(default_factory=set)
    marks: set[_Span] = field(default_factory=set)
    #: Words that cards and parameters say themselves: no patient's in any file of the study.
    known: set[str] = field(default_factory=set)

    def add(self, table: Any, card: str = "", known: str = "") -> None:
        """Learn the cases of a ``cases.parquet`` (`Run.keep_source`): columns case_id, group_id, texts, ids.

        ``known`` is what the ``card`` and the parameters say themselves: question, labels, names of columns.
        """
        found: tuple[dict[Any, set[str]], ...] = (defaultdict(set), defaultdict(set), defaultdict(set))
        for row in table.to_dict("records"):
            self.cases.add((card, row["case_id"]))
            for text in map(_flat, row["texts"]):
                tokens = _tokens(text)
                for groups, parts in zip(found, (_copies(tokens), tokens, _marks(text)), strict=True):
                    for part in parts:
                        groups[part].add(row["group_id"])
        most = max(COMMON_GROUPS, COMMON_SHARE * table["group_id"].nunique())
        copies, words, marks = ({part for part, of in groups.items() if len(of) <= most} for groups in found)
        own, ids = _tokens(_flat(known)), {_flat(one) for row in table["ids"] for one in row}
        words |= {word for one in ids for word in _tokens(one)}
        self.known |= set(own)
        self.copies |= copies - _copies(own, range(FEWEST, WORDS + 1))
        words = {one for one in words if not one.isdigit() and (len(one) > 2 or re.match(_UNSPACED, one))}
        self.words = (self.words | words) - self.known - own_words()
        self.marks |= marks.difference(_spans(own, set(map(len, marks)))).union(_identifiers(ids))

    def rules_broken(self, text: str, numbers: bool = True) -> list[str]:
        """Names of the rules that ``text`` breaks, as it stands or without markup.

        ``numbers=False``: of the package's own tables, whose numbers are counts, rates and times.
        """
        forms = {text, plain(text)} if numbers else {_HASH.sub(" ", plain(text))}
        return sorted({rule for form in forms for rule in self._broken(_flat(form), numbers)})

    def _broken(self, text: str, numbers: bool) -> Iterator[str]:
        yield from (name for name, pattern in PATTERNS.items() if re.search(pattern, text, re.IGNORECASE))
        tokens = _tokens(text)
        marks = self.marks.intersection(_spans(tokens, set(map(len, self.marks))))
        if self.copies & _copies(tokens, range(FEWEST, WORDS + 1)):
            yield RULES[0]
        if not self.words.isdisjoint(tokens):
            yield RULES[1]
        if any(numbers or not "".join(mark).isdigit() for mark in marks):
            yield RULES[2]


@cache
def own_words() -> frozenset[str]:
    """Words that the package itself writes: those of its sources and templates."""
    package = Path(__file__).parents[1]
    files = (file for pattern in ("**/*.py", "**/*.j2", "**/*.csv") for file in package.glob(pattern))
    return frozenset(token for file in files for token in _tokens(_flat(file.read_text(encoding="utf-8"))))


def plain(text: str) -> str:
    """Without markup, embedded images and terminal colours; of an SVG only what is written in it, no coordinates."""
    text = re.sub(r"data:image/[^;]+;base64,[A-Za-z0-9+/=\s]+|\x1b\[[0-9;]*m", " ", text)
    text = re.sub(r"<!--(.*?)-->", r" \1 ", text, flags=re.DOTALL)  # matplotlib draws a text and notes it beside
    return html.unescape(re.sub(r"<(style|metadata).*?</\1>|<[^>]*>", " ", text, flags=re.DOTALL))


def _flat(text: str) -> str:
    """Lower case without accents, invisible signs and escapes, so that one word is written in one way."""
    text = re.sub(r"\\u([0-9a-fA-F]{4})", lambda code: chr(int(code[1], 16)), str(text))
    text = unicodedata.normalize("NFKD", re.sub(r"\\[nrt]", " ", text))
    return "".join(sign for sign in text if unicodedata.category(sign) not in ("Cf", "Mn")).casefold()


def _tokens(text: str) -> list[str]:
    """Words, numbers, and neighbours in scripts without blanks."""
    tokens: list[str] = []
    for token in _TOKEN.findall(text):
        pairs = len(token) > 1 and re.match(_UNSPACED, token)
        tokens += [token[i : i + 2] for i in range(len(token) - 1)] if pairs else [token]
    return tokens


def _spans(tokens: list[str], sizes: Collection[int]) -> Iterator[_Span]:
    return (tuple(tokens[i : i + size]) for size in sizes for i in range(len(tokens) - size + 1))


def _copies(tokens: list[str], sizes: Collection[int] = ()) -> set[int]:
    """Hashes of all runs of `WORDS` words, or of so many as a short text has; or of all runs of these sizes."""
    return set(map(hash, _spans(tokens, sizes or {min(max(len(tokens), FEWEST), WORDS)})))


def _marks(text: str) -> Iterator[_Span]:
    """Tokens of what looks like a date, a telephone or a record number; of a date also the other order."""
    for found in _NUMBERS.findall(text):
        mark = tuple(_tokens(found))
        if sum(sign.isalnum() for sign in found) >= 5:
            yield mark
            if len(mark) == 3 and all(part.isdigit() for part in mark):
                yield mark[::-1]


def _identifiers(ids: set[str]) -> Iterator[_Span]:
    """Tokens of the cases' identifiers. Row numbers and numbers of up to three digits are nobody's."""
    whole = sorted(int(one) for one in ids if one.isdigit())
    counted = len(whole) > 9 and whole[-1] - whole[0] < 2 * len(whole)
    for one in ids:
        mark = tuple(_tokens(one))
        if (len("".join(mark)) >= 4 or len(mark) > 2) and not (counted and one.isdigit()):
            yield mark
