"""The audit of a source and its splits: one small table of counts, without the text of any one case."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping

import numpy as np
import pandas as pd

from medstudy.data.cases import Case
from medstudy.data.load import Loaded
from medstudy.data.rows import answers_by_text, text_key
from medstudy.data.splits import Splits

#: Balanced accuracy from which a single value or word is suspected of giving the answer away.
LEAK = 0.95
#: Wording of fewer cases and groups than this proves nothing, and may be a patient's.
LEAK_CASES = 11
#: How a line about a wording begins; of a source that may not be shown the wording is left out.
WORDING = "the wording "
#: Cosine of two texts' TF-IDF vectors (words and pairs of words) from which they are near-duplicates.
NEAR = 0.9
_LIKE = f"cases like a training case (cosine of words >= {NEAR})"
Parts = Mapping[str, list[Case]]
Line = dict[str, str | int]


def audit(loaded: Loaded, splits: Splits) -> pd.DataFrame:
    """Count what a reader should know before training.

    Returns:
        Columns topic, measure, source, train, validation, test; whole numbers, empty where none applies.
    """
    parts = {
        "source": loaded.cases,
        "train": splits.train,
        "validation": splits.validation,
        "test": splits.test,
    }
    drawn = {name: cases for name, cases in parts.items() if name != "source"}
    lines = [*_rows(loaded), *_sizes(parts), *_answers(loaded, parts), *_missing(parts), *_lengths(parts)]
    lines += [*_repeats(parts), *_overlap(drawn), *_leaks(loaded)]
    return pd.DataFrame(lines, columns=["topic", "measure", *parts]).astype(dict.fromkeys(parts, "Int64"))


def near_duplicates(table: pd.DataFrame) -> int:
    """Test cases that repeat a training case or nearly so, from an `audit` table."""
    return int(table.loc[table["measure"] == _LIKE, "test"].item())


def _line(topic: str, measure: str, parts: Parts, count: Callable[[list[Case]], int]) -> Line:
    return {"topic": topic, "measure": measure} | {name: count(cases) for name, cases in parts.items()}


def _rows(loaded: Loaded) -> Iterator[Line]:
    yield {"topic": "rows", "measure": "in the source", "source": loaded.rows_in}
    yield {"topic": "rows", "measure": "kept", "source": len(loaded.cases)}
    for what, n in loaded.unmatched.items():
        yield {"topic": "rows", "measure": what, "source": n}
    for reason, n in Counter(d.reason for d in loaded.dropped).most_common():
        yield {"topic": "rows", "measure": f"dropped: {reason}", "source": n}


def _sizes(parts: Parts) -> Iterator[Line]:
    yield _line("size", "cases", parts, len)
    yield _line("size", "groups", parts, lambda cases: len({c.group_id for c in cases}))


def _answers(loaded: Loaded, parts: Parts) -> Iterator[Line]:
    for outcome, labels in loaded.labels.items():
        for label in labels:
            yield _line(outcome, label, parts, lambda cases, o=outcome, a=label: sum(c.gold[o] == a for c in cases))
    for outcome in sorted(loaded.cases[0].open_outcomes):
        yield _line(outcome, "different answers", parts, lambda cases, o=outcome: len({c.gold[o] for c in cases}))


def _missing(parts: Parts) -> Iterator[Line]:
    counts = {name: Counter(f for case in cases for f in _absent(case)) for name, cases in parts.items()}
    for feature in sorted(counts["source"]):
        yield {"topic": "missing values", "measure": feature} | {name: n[feature] for name, n in counts.items()}


def _absent(case: Case) -> set[str]:
    features = case.details.get("features", {})
    return {*case.details.get("missing", ()), *(name for name, value in features.items() if value is None)}


def _lengths(parts: Parts) -> Iterator[Line]:
    for measure, q in (("median", 0.5), ("95 %", 0.95), ("longest", 1.0)):
        yield _line("words in text", measure, parts, lambda cases, q=q: _quantile([c.text for c in cases], q))
    if "summary" in parts["source"][0].gold:
        yield _line(
            "words in summary",
            "median",
            parts,
            lambda cases: _quantile([c.gold["summary"] for c in cases], 0.5),
        )


def _quantile(texts: list[str], q: float) -> int:
    return round(pd.Series([len(text.split()) for text in texts]).quantile(q))


def _repeats(parts: Parts) -> Iterator[Line]:
    yield _line("repeats", "cases that repeat a text", parts, lambda cases: len(cases) - len(answers_by_text(cases)))
    conflict = "texts with different answers"
    yield _line("repeats", conflict, parts, lambda cases: sum(len(a) > 1 for a in answers_by_text(cases).values()))


def _overlap(drawn: Parts) -> Iterator[Line]:
    groups = {name: {c.group_id for c in cases} for name, cases in drawn.items()}
    shared = {a: len(groups[a] & set().union(*(groups[b] for b in drawn if b != a))) for a in drawn}
    yield {"topic": "overlap", "measure": "groups in another split (must be 0)"} | shared
    held = {text_key(c.text) for c in drawn["train"]}
    others = {name: cases for name, cases in drawn.items() if name != "train"}
    same = "cases with the text of a training case"
    yield _line("overlap", same, others, lambda cases: sum(text_key(c.text) in held for c in cases))
    yield _line("overlap", _LIKE, others, lambda cases: _near(cases, drawn["train"]))


def _leaks(loaded: Loaded) -> Iterator[Line]:
    """Values and words that tell an answer nearly alone, with their balanced accuracy in percent.

    And cases whose text holds the open answer, of four words or more, word for word.
    """
    for outcome in sorted(loaded.cases[0].open_outcomes):
        held = sum(_holds(case.text, case.gold[outcome]) for case in loaded.cases)
        if held:
            yield {"topic": "leak?", "measure": f"cases whose text holds the {outcome}", "source": held}
    for outcome in loaded.labels:
        gold = np.array([case.gold[outcome] for case in loaded.cases])
        found = _telling_values(loaded.cases, gold) | _telling_words(loaded.cases, gold)
        for name, accuracy in found.items():
            measure = f"{name} alone tells {outcome} (balanced accuracy, %)"
            yield {"topic": "leak?", "measure": measure, "source": round(100 * accuracy)}


def _holds(text: str, answer: str) -> bool:
    plain = " ".join(answer.casefold().split())
    return plain.count(" ") >= 3 and plain in " ".join(text.casefold().split())


def _telling_values(cases: list[Case], gold: np.ndarray) -> dict[str, float]:
    """Of each declared number or code: a small tree, cross-validated; a missing value is a value too."""
    from sklearn.model_selection import cross_val_score
    from sklearn.tree import DecisionTreeClassifier

    folds = min(5, int(np.unique(gold, return_counts=True)[1].min()))
    names, leaves = list(cases[0].details.get("features", {})), 2 * len(np.unique(gold))
    if len(cases) < 2 * LEAK_CASES or folds < 2:
        return {}
    found = {}
    for name in names:
        values = np.array([[case.details["features"][name]] for case in cases], dtype=float)
        tree = DecisionTreeClassifier(max_leaf_nodes=leaves, class_weight="balanced", random_state=0)
        found[name] = float(cross_val_score(tree, values, gold, cv=folds, scoring="balanced_accuracy").mean())
    return {f"'{name}'": accuracy for name, accuracy in found.items() if accuracy >= LEAK}


def _telling_words(cases: list[Case], gold: np.ndarray) -> dict[str, float]:
    """Of each word and pair of words: is it there in the cases of one label and in no others?

    The five that tell most. Only wording of so many groups counts, so that none is one patient's.
    """
    from sklearn.feature_extraction.text import CountVectorizer

    if len(cases) < 2 * LEAK_CASES:
        return {}
    vectorizer = CountVectorizer(binary=True, ngram_range=(1, 2), min_df=LEAK_CASES, token_pattern=r"\S+")
    try:
        there = vectorizer.fit_transform([case.text for case in cases])
    except ValueError:  # no word is in so many cases
        return {}
    found: dict[str, float] = {}
    groups, words = np.array([c.group_id for c in cases]), vectorizer.get_feature_names_out()
    for label in np.unique(gold):
        held = gold == label
        if held.sum() < LEAK_CASES or (~held).sum() < LEAK_CASES:
            continue
        hit = np.asarray(there[held].mean(axis=0)).ravel()
        false = np.asarray(there[~held].mean(axis=0)).ravel()
        accuracy = (1 + np.abs(hit - false)) / 2
        telling = [i for i in np.argsort(-accuracy, kind="stable") if accuracy[i] >= LEAK]
        for i in telling:
            if len(set(groups[there[:, [i]].nonzero()[0]])) >= LEAK_CASES:
                word = f"{WORDING}'{words[i]}'"
                found[word] = max(found.get(word, 0.0), float(accuracy[i]))
    return dict(sorted(found.items(), key=lambda item: -item[1])[:5])


def _near(cases: list[Case], train: list[Case]) -> int:
    """How many cases have a (near-)duplicate in train. What most texts say is their form, and left out."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.neighbors import NearestNeighbors

    held = {text_key(c.text) for c in train}
    same = pd.Series([text_key(c.text) in held for c in cases])
    vectorizer = TfidfVectorizer(ngram_range=(1, 2), token_pattern=r"\S+", max_df=0.5)
    try:
        vectors = vectorizer.fit_transform([c.text for c in [*train, *cases]])
    except ValueError:  # no word tells the texts apart
        return int(same.sum())
    nearest = NearestNeighbors(n_neighbors=1, metric="cosine").fit(vectors[: len(train)])
    distance, _ = nearest.kneighbors(vectors[len(train) :])
    return int((same | (distance.ravel() <= 1 - NEAR)).sum())
