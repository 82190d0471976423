"""The audit of a source and its splits: one small table of counts, without the text of any one case."""

from collections import Counter
from collections.abc import Iterator, Mapping
from functools import partial

import numpy as np
import pandas as pd

from medstudy.data.card import DataCard
from medstudy.data.cases import Case, masked
from medstudy.data.load import Loaded
from medstudy.data.rows import answers_by_text, loose, text_key
from medstudy.data.splits import Splits
from medstudy.show import own

#: Balanced accuracy from which a single value or word is suspected of giving the answer away.
LEAK = 0.95
#: Wording of fewer cases and groups than this proves nothing, and may be a patient's.
LEAK_CASES = 11
HELD_OUT = ("validation", "test")
#: How a line about a wording begins; of a source that may not be shown the wording is left out.
WORDING = "the wording "
#: Cosine of two texts' TF-IDF vectors (words and pairs of words) from which they are near-duplicates.
NEAR = 0.9
#: A label with fewer training or test cases than this can hardly be learnt or measured.
RARE = 10
#: Numbers that often mean "not known".
_MARKS = {0, -1, -9, -99, -999, -9999, 99, 999, 9999, 99999}
_LIKE = f"cases like a training case (cosine of words >= {NEAR})"
Line = Mapping[str, str | int]


def audit(loaded: Loaded, splits: Splits) -> pd.DataFrame:
    """What a reader should know before training: columns topic, measure, source and the splits; whole numbers or NA."""
    drawn = vars(splits)
    parts = {"source": loaded.cases} | drawn
    rows = {"in the source": loaded.rows_in, "kept": len(loaded.cases)}
    rows |= {f"dropped: {why}": n for why, n in Counter(row.reason for row in loaded.dropped).most_common()}
    lines: list[Line] = [{"topic": "rows", "measure": what, "source": n} for what, n in rows.items()]
    counts = {name: _counts(cases, loaded) for name, cases in parts.items()}
    for topic, measure in counts["source"]:
        lines.append({"topic": topic, "measure": measure} | {name: n[topic, measure] for name, n in counts.items()})
    lines += [*_overlap(drawn), *_leaks(loaded)]
    table = pd.DataFrame(lines, columns=["topic", "measure", *parts]).astype(dict.fromkeys(parts, "Int64"))
    return own(table)


def near_duplicates(table: pd.DataFrame) -> int:
    """Test cases that repeat a training case or nearly so, from an `audit` table."""
    return int(table.loc[table["measure"] == _LIKE, "test"].item())


def _not_known(card: DataCard, loaded: Loaded) -> Iterator[str]:
    """Declared numbers whose least or largest value often means "not known", or that rounding makes alike."""
    for spec in (field for field in card.columns.fields if field.is_number):
        values = pd.Series([case.details["features"][spec.column] for case in loaded.cases], dtype=float).dropna()
        middle = values.median()
        above = values[values > 0]
        # a pressure of 0 where all others begin far from it; a count may well be 0
        gap = above.median() > 10 and above.min() > above.median() / 5
        for v in {values.min(), values.max()} & _MARKS:
            if gap if v == 0 else v < 0 < middle or abs(v) > 3 * abs(middle):
                times = masked(int((values == v).sum()), card.shareable, "fewer than")
                yield f"{spec.column}: does {v:g} ({times} times) mean 'not known'? See columns.missing"
        digits = 12 if spec.decimals is None else spec.decimals
        read, made = (values.map(f"{{:.{how}}}".format).nunique() for how in (f"{digits}f", "12g"))
        if read < min(made, 10):  # who rounds 200 temperatures to 20 means it
            yield f"{spec.column}: decimals: {digits} makes different values read alike; see columns.fields"


def notes(card: DataCard, loaded: Loaded, table: pd.DataFrame) -> Iterator[str]:
    """What of a source and its `audit` a reader should look at before training."""
    yield from loaded.notes
    yield from _not_known(card, loaded)
    hide = table["topic"].eq("leak?") & table["measure"].str.startswith(WORDING) & (not card.shareable)
    hidden = table["source"][hide].tolist()
    parts = [name for name in table.columns[3:] if name != "validation" and table[name].notna().any()]
    shown = partial(masked, shareable=card.shareable)
    for row in table[~hide].to_dict("records"):
        topic, what, count = row["topic"], row["measure"], row["source"]
        rare = [name for name in parts if topic in loaded.labels and row[name] < RARE]
        if topic == "leak?":
            yield f"{what}: {shown(count)}; does it give the answer away? See columns.exclude"
        elif topic == "repeats" and count:
            yield f"{what}: {shown(count)}; see columns.repeats"
        elif topic == "missing values" and count == len(loaded.cases):
            yield f"{what} has no value in any case"
        elif topic == "overlap" and max(row["validation"], row["test"]) > 0:
            yield f"{what}: {shown(row['validation'])} of validation, {shown(row['test'])} of test"
        elif rare:
            counts = (f"{shown(row[name], below='fewer than')} in {name}" for name in rare)
            yield f"{topic} '{what}' is rare: {', '.join(counts)}"
    if hidden:
        told = f"wordings that alone tell the answer (not shown): {len(hidden)}, the best {max(hidden)}"
        yield f"{told} (balanced accuracy, %); do they give it away? See columns.exclude"
    if not (card.columns.group_id or card.synthetic):
        yield "no columns.group_id: if patients have several rows, one may be in two splits; name the patient's column"
    largest = Counter(case.group_id for case in loaded.cases).most_common(1)[0][1]
    if largest > len(loaded.cases) / 10:
        yield f"a group holds {shown(largest)} of {shown(len(loaded.cases))} cases: is columns.group_id the patient's?"


def _counts(cases: list[Case], loaded: Loaded) -> dict[tuple[str, str], int]:
    """What is counted in a split, by topic and measure: the same for all of a source."""
    found = {("size", "cases"): len(cases), ("size", "groups"): len({c.group_id for c in cases})}
    for outcome, labels in loaded.labels.items():
        found |= {(outcome, label): sum(c.gold[outcome] == label for c in cases) for label in labels}
    free = sorted(loaded.cases[0].open_outcomes)
    found |= {(outcome, "different answers"): len({c.gold[outcome] for c in cases}) for outcome in free}
    absent = Counter(name for c in cases for name in _absent(c))
    found |= {("missing values", name): absent[name] for name in sorted(set().union(*map(_absent, loaded.cases)))}
    words = [len(c.text.split()) for c in cases] or [0]
    for measure, q in (("median", 0.5), ("95 %", 0.95), ("longest", 1.0)):
        found["words in text", measure] = round(np.quantile(words, q))
    for outcome in free:
        found[f"words in {outcome}", "median"] = round(np.median([len(c.gold[outcome].split()) for c in cases] or [0]))
    answers = answers_by_text(cases)
    found["repeats", "cases that repeat a text"] = len(cases) - len(answers)
    found["repeats", "texts with different answers"] = sum(len(different) > 1 for different in answers.values())
    return found


def _absent(case: Case) -> set[str]:
    features = case.details.get("features", {})
    return {*case.details.get("missing", ()), *(name for name, value in features.items() if value is None)}


def _overlap(drawn: dict[str, list[Case]]) -> Iterator[Line]:
    groups = {name: {c.group_id for c in cases} for name, cases in drawn.items()}
    shared = {a: len(groups[a] & set().union(*(groups[b] for b in drawn if b != a))) for a in drawn}
    yield {"topic": "overlap", "measure": "groups in another split (must be 0)"} | shared
    train = [*drawn["train"], *drawn["prefer"]]
    held = {text_key(c.text) for c in train}
    same = {name: np.array([text_key(c.text) in held for c in drawn[name]], dtype=bool) for name in HELD_OUT}
    like = {name: there | _near(drawn[name], train) for name, there in same.items()}
    for measure, found in (("cases with the text of a training case", same), (_LIKE, like)):
        yield {"topic": "overlap", "measure": measure} | {name: int(there.sum()) for name, there in found.items()}


def _near(cases: list[Case], train: list[Case]) -> np.ndarray:
    """Which cases have a near-duplicate in train. What most texts say is their form, and left out."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    vectorizer = TfidfVectorizer(ngram_range=(1, 2), token_pattern=r"\S+", max_df=0.5)
    try:
        vectors = vectorizer.fit_transform([c.text for c in [*train, *cases]])
    except ValueError:  # no word tells the texts apart
        return np.zeros(len(cases), dtype=bool)
    return (vectors[len(train) :] @ vectors[: len(train)].T).max(axis=1).toarray().ravel() >= NEAR


def _leaks(loaded: Loaded) -> Iterator[Line]:
    """Values and words that tell an answer nearly alone; open answers of four words or more that the text holds."""
    cases = loaded.cases
    for outcome in sorted(cases[0].open_outcomes):
        told = [(loose(c.gold[outcome]), loose(c.text)) for c in cases]
        if held := sum(answer.count(" ") >= 3 and answer in text for answer, text in told):
            yield {"topic": "leak?", "measure": f"cases whose text holds the {outcome}", "source": held}
    for outcome in loaded.labels if len(cases) >= 2 * LEAK_CASES else ():
        gold = np.array([case.gold[outcome] for case in cases])
        for name, accuracy in (_telling_values(cases, gold) | _telling_words(cases, gold)).items():
            measure = f"{name} alone tells {outcome} (balanced accuracy, %)"
            yield {"topic": "leak?", "measure": measure, "source": round(100 * accuracy)}


def _telling_values(cases: list[Case], gold: np.ndarray) -> dict[str, float]:
    """Of each declared number or code: a small tree, cross-validated; a missing value is a value too."""
    from sklearn.model_selection import cross_val_score
    from sklearn.tree import DecisionTreeClassifier

    labels, sizes = np.unique(gold, return_counts=True)
    found = {}
    for name in cases[0].details.get("features", {}) if min(sizes) > 1 else ():
        values = np.array([[case.details["features"][name]] for case in cases], dtype=float)
        tree = DecisionTreeClassifier(max_leaf_nodes=2 * len(labels), class_weight="balanced", random_state=0)
        folds = min(5, int(min(sizes)))
        accuracy = cross_val_score(tree, values, gold, cv=folds, scoring="balanced_accuracy").mean()
        if accuracy >= LEAK:
            found[f"'{name}'"] = float(accuracy)
    return found


def _telling_words(cases: list[Case], gold: np.ndarray) -> dict[str, float]:
    """Of each word and pair of words: is it there in the cases of one label and in no others?

    The five that tell most. Only wording of so many groups counts, so that none is one patient's.
    """
    from sklearn.feature_extraction.text import CountVectorizer

    vectorizer = CountVectorizer(binary=True, ngram_range=(1, 2), min_df=LEAK_CASES, token_pattern=r"\S+")
    try:
        there = vectorizer.fit_transform([case.text for case in cases])
    except ValueError:  # no word is in so many cases
        return {}
    found: dict[str, float] = {}
    groups, words = np.array([c.group_id for c in cases]), vectorizer.get_feature_names_out()
    for held in (gold == label for label in np.unique(gold)):
        if min(held.sum(), (~held).sum()) < LEAK_CASES:
            continue
        hit, false = (np.asarray(there[rows].mean(axis=0)).ravel() for rows in (held, ~held))
        accuracy = (1 + np.abs(hit - false)) / 2
        for i in np.flatnonzero(accuracy >= LEAK):
            if len(set(groups[there[:, [i]].nonzero()[0]])) >= LEAK_CASES:
                word = f"{WORDING}'{words[i]}'"
                found[word] = max(found.get(word, 0.0), float(accuracy[i]))
    return dict(sorted(found.items(), key=lambda item: -item[1])[:5])
