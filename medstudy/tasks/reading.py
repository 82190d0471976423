"""How an answer is read: as a clinician would, by the same rules for every arm.

An answer that states two different labels, or only says what is not so, is not read. That a text was read
although it is not in the asked-for form is counted (`Answer.exact`).
"""

import re
import unicodedata
from collections.abc import Iterable, Sequence

#: Labels that are words of any sentence count only where an answer stands, as do numbers and letters.
_WEAK = re.compile(r"yes|no|none|true|false|\W*\w{1,2}\W*|\d+")
_STOP = r"[\n.:;,!()\[\]|=–—]"
#: What stands before and after a label that is an answer by itself.
_HEAD = re.compile(rf"(?:^|{_STOP}|\s-|[?/])\s*(?:an?\s|the\s)?$")
_COPULA = re.compile(r"\b(?:is|be|answer|level|class|grade|option|category|say|choose)\s(?:an?\s|the\s)?$")
_END = re.compile(
    rf"\s*(?:$|(?:{_STOP}|-\s)(?!\s*(?:or|and|maybe|perhaps|possibly)\b)|(?:because|since|as|due to|given)\b)"
)
_NEGATED = re.compile(
    r"(?:\b(?:not|no|non|never|neither|nor|without|cannot|unlikely|than|instead of|excludes?d?|rule[sd]? out"
    r"|denie[sd]|whether|if)\b|n't\b)(?:\s+(?!(?:and|but|doubt|only|however)\b)[\w'-]+){0,4}\s*$"
)
_DENIED = re.compile(
    r"\s*(?:[:=]\s*(?:no|false|unlikely|negative|excluded)\s*(?:$|[\n.,;])|[^\n.!]*\?"
    r"|(?:(?:is|was|seems|appears|looks)\s+)?(?:very\s|highly\s)?(?:unlikely|improbable|excluded|ruled out|less likely)"
    r"|(?:is|was|seems|appears|looks)(?:n't|\s+not)\b)"
)
#: Signs without width go, dashes within a word and apostrophes have one form.
_SIGNS = dict.fromkeys(map(ord, "\u00ad\u200b\u200c\u200d\u2060\ufeff")) | {0x2019: "'"}
_SIGNS |= dict.fromkeys(map(ord, "\u2010\u2011\u2012\u2212"), "-")
_REVISED = re.compile(r"\b(?:actually|wait|correction|sorry|second thought|instead)\b")


def said(text: str) -> str:
    """What stands after a thinking block; nothing, where the block was never closed."""
    begins, ends = (rf"[\[<]{slash}(?:\w+:)?think(?:ing)?[\]>]" for slash in ("", "/"))
    after = re.split(ends, text, flags=re.IGNORECASE)[-1]
    return re.split(begins, after, flags=re.IGNORECASE)[0].strip()


def plain(text: str) -> str:
    """What is said without markdown and quotes, one form of each letter and dash, single blanks."""
    text = unicodedata.normalize("NFKC", said(text)).translate(_SIGNS)
    text = re.sub(r"[*`\"“”„«»]|__|^[\s>#•+|-]+(?=\s)|^>", "", text, flags=re.MULTILINE)
    return "\n".join(" ".join(line.split()) for line in text.splitlines()).strip()


def normalise(text: str) -> str:
    """Lower case, no punctuation at the ends, single blanks: how answers are compared."""
    return re.sub(r"\s+", " ", text).strip(" \t\n.,;:!\"'*").casefold()


def field_of(text: str, names: str | Iterable[str], others: Iterable[str] = ()) -> str | None:
    """What stands behind ``name:``, up to the line's end or the next of ``others``; None unless it is one thing."""
    names = [names] if isinstance(names, str) else list(names)
    this, next_ = ("|".join(map(re.escape, words)) for words in (names, [*names, *others]))
    stop = rf"(?=[\s,;|.]*(?<![\w-])(?:{next_})\s*[:=|]|\n|\Z)"
    pattern = rf"(?<![\w-])(?:{this})\s*(?:[:=|]|\s[-–—]\s|is\b:?)\s*([^\n]*?){stop}"
    found = [value.strip(" |,;") for value in re.findall(pattern, plain(text), re.IGNORECASE)]
    different = {normalise(value): value for value in found if normalise(value)}
    return next(iter(different.values())) if len(different) == 1 else None


def labels_in(text: str, labels: Sequence[str]) -> list[str]:
    """The labels that a text gives as its answer: the one that it begins with, else all that it affirms."""
    text = plain(text).casefold()
    found: list[tuple[int, str, bool]] = []
    for label in sorted(labels, key=len, reverse=True):
        wanted = normalise(plain(label))
        # between words only: of `HER2-` and `-1` the sign is the answer
        words = r"[\s_-]*".join(map(re.escape, re.split(r"(?<=[^\s_-])[\s_-]+(?=[^\s_-])", wanted)))
        pattern = re.compile(rf"(?<![\w-])(?<!\d[.,/]){words}(?![\w-])(?![.,/]\d)")
        for match in pattern.finditer(text):
            before, after = text[max(0, match.start() - 80) : match.start()], text[match.end() : match.end() + 80]
            end, head = _END.match(after), _HEAD.search(before)
            weak = _WEAK.fullmatch(wanted) and not (end and (head or _COPULA.search(before)))
            if not (weak or _NEGATED.search(before) or _DENIED.match(after)):
                found.append((match.start(), label, bool(head and end)))
        # blanked, so that `urgent` is not found in `non-urgent`
        text = pattern.sub(lambda match: "\0" * len(match.group()), text)
    affirmed = {label for _, label, _ in found}
    alone = {label for _, label, head in found if head}
    first = min(found, default=None)
    if first and first[2] and len(alone) == 1 and not _REVISED.search(text):
        affirmed = alone
    return [label for label in labels if label in affirmed]
