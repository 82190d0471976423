"""Building blocks that the corpus and the five generators share: phrases, and cases by layout."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from demo import medicine as med
from medstudy.data.cases import Case, DataError

_TRIES = 200  # draws before a layout is declared too poor in distinct texts


@dataclass(frozen=True)
class Draft:
    """What a generator writes; `write_cases` adds the ids."""

    text: str
    gold: Mapping[str, str]
    details: Mapping[str, Any] = field(default_factory=dict)
    demonstration: Mapping[str, str] | None = None


Layout = tuple[int, ...]


def write_cases(
    name: str, n: int, seed: int, shape: Sequence[int], draft: Callable[[Layout, int, random.Random], Draft]
) -> list[Case]:
    """Write ``n`` cases with distinct texts, one for each layout as long as there are so many layouts.

    A layout is one choice of wording per slot; ``shape`` holds the number of choices of each slot. The
    layout is the group, so that every case is one unit of an interval.

    Args:
        name: prefix of the ids.
        n: number of cases.
        seed: same seed, same cases.
        shape: choices per slot, e.g. ``(6, 5, 4)`` for 120 possible layouts.
        draft: writes a case from (layout, turn, random source). ``turn`` runs over 0..n-1 in random
            order, so that ``turn % k`` balances k classes.

    Raises:
        DataError: if ``n`` is negative or a layout has no more unseen texts.
    """
    if n < 0:
        raise DataError(f"n is {n}; give 0 or more synthetic cases")
    rng = random.Random(f"{name} {seed}")
    space = math.prod(shape)
    layouts = [_layout(i, shape) for i in rng.sample(range(space), min(space, n))]
    turns = rng.sample(range(n), n)
    seen: set[str] = set()
    cases = []
    for i, turn in enumerate(turns):
        layout = layouts[i % len(layouts)]
        new = _unseen(layout, turn, rng, draft, seen)
        group = "-".join([name, *map(str, layout)])
        case_id = f"{name}-{seed}-{i:05d}"
        cases.append(Case(case_id, group, new.text, new.gold, new.details, demonstration=new.demonstration))
    return cases


def _layout(index: int, shape: Sequence[int]) -> Layout:
    """Write ``index`` in the mixed base ``shape``."""
    digits = []
    for size in shape:
        index, digit = divmod(index, size)
        digits.append(digit)
    return tuple(digits)


def _unseen(
    layout: Layout, turn: int, rng: random.Random, draft: Callable[[Layout, int, random.Random], Draft], seen: set[str]
) -> Draft:
    for _ in range(_TRIES):
        new = draft(layout, turn, rng)
        if new.text not in seen:
            seen.add(new.text)
            return new
    raise DataError(f"layout {layout} gives no new text after {_TRIES} draws; ask for fewer cases than {len(seen)}")


def listed(items: Sequence[str], last: str = "and") -> str:
    """Join as in prose: ``a, b and c``."""
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} {last} {items[-1]}"


def capital(text: str) -> str:
    """Make the first letter a capital one."""
    return text[0].upper() + text[1:]


def unlike(items: Iterable[str], known: Sequence[str]) -> list[str]:
    """Items that neither hold nor are held by a known one, as "cough" and "cough at night" do."""
    return [item for item in items if not any(item in one or one in item for one in known)]


def sentence(text: str) -> str:
    """Capitalise the first letter and add a full stop."""
    return f"{capital(text)}."


def bare(lay: str) -> str:
    """Drop the article, so that a patient's phrase fits after "no" or "any"."""
    for article in ("a ", "an "):
        if lay.startswith(article):
            return lay[len(article) :]
    return lay


def asked(lay: str) -> str:
    """Turn a patient's phrase into the doctor's: ``pain in my side`` -> ``pain in your side``."""
    return lay.replace(" my ", " your ").replace(" I ", " you ")


def person(rng: random.Random, sex: str = "") -> tuple[str, str]:
    """Draw a description and a pronoun, e.g. ``("a 54-year-old woman", "she")``; ``sex`` fixes the first."""
    sex = sex or rng.choice(med.PERSONS)
    age = rng.randint(18, 90)
    article = "an" if age == 18 or 80 <= age < 90 else "a"
    return f"{article} {age}-year-old {sex}", "she" if sex == "woman" else "he"


def course(rng: random.Random, urgency: str) -> str:
    """Draw how long a disease of this urgency may have lasted: a heart attack days, a dry skin months."""
    first, last = {"immediate": (0, 3), "urgent": (0, 6), "soon": (1, 8), "routine": (4, 10)}[urgency]
    return rng.choice(med.DURATIONS[first:last])


def drug_line(rng: random.Random) -> tuple[str, str, str]:
    """Draw a medicine, a dose and how often it is taken."""
    drug = rng.choice(tuple(med.DRUGS))
    return drug, rng.choice(med.DRUGS[drug]), rng.choice(med.FREQUENCIES)
