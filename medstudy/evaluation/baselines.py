"""What a hospital would use without a language model: scikit-learn on the same cases. Baselines, not arms."""

from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from medstudy.data.cases import SMALLEST_COUNT, Case
from medstudy.data.splits import Splits
from medstudy.evaluation.metrics import single_outcome
from medstudy.evaluation.predictions import predictions_table
from medstudy.tasks.base import Task
from medstudy.tasks.summarization import Summarization


def baseline_predictions(task: Task, splits: Splits, seed: int) -> pd.DataFrame:
    """Fit on the cases of train and prefer, answer the test cases; a table as `predictions_table` makes it.

    The most frequent answer of training, outcome by outcome; for summaries also the first words of the text
    (``lead``), as many as a gold summary has. Where one outcome has labels also the positive one for everybody (the F1
    to beat; from it the positives can be counted, so of a private source not where either side is few), logistic
    regression on TF-IDF of words or on standardised numbers, and gradient boosting on numbers. Settings are
    scikit-learn's defaults.
    """
    outcome = single_outcome(task.card.labels)
    if outcome is None or outcome in task.open_outcomes:
        commonest = {o: Counter(c.gold[o] for c in splits.labelled).most_common(1)[0][0] for o in task.outcomes}
        answers = {"majority": [_said(task, case, commonest) for case in splits.test]}
        if isinstance(task, Summarization):
            words = int(np.median([len(task.target(case).split()) for case in splits.labelled]))
            answers["lead"] = [" ".join(case.text.split()[:words]) for case in splits.test]
        return predictions_table(task, splits.test, answers)
    labels, gold = task.card.labels[outcome], [case.gold[outcome] for case in splits.labelled]
    names = list(splits.train[0].details.get("features", ()))
    train, test = (
        np.array([[case.details["features"][name] for name in names] for case in cases], dtype=float)
        if names
        else [case.text for case in cases]
        for cases in (splits.labelled, splits.test)
    )
    answers, probabilities = {}, {}
    commonest = Counter(gold).most_common(1)[0][0]
    models = _models(bool(names), seed, task.card.positive)
    for name, label in (("majority", commonest), ("always_positive", task.card.positive)):
        # the F1 of always saying it counts it: of a private source not where few have it, or few have it not
        n = sum(case.gold[outcome] == label for case in splits.test)
        if label not in gold or min(n, len(splits.test) - n) < (1 if task.card.shareable else SMALLEST_COUNT):
            models.pop(name)
    for name, model in models.items():
        found = model.fit(train, gold).predict_proba(test)
        # a label that is not in training has no column, and no chance
        columns = [list(model.classes_).index(x) if x in model.classes_ else -1 for x in labels]
        probabilities[name] = np.column_stack([found, np.zeros(len(found))])[:, columns]
        best = (labels[i] for i in probabilities[name].argmax(axis=1))
        answers[name] = [_said(task, case, {outcome: label}) for case, label in zip(splits.test, best, strict=True)]
    return predictions_table(task, splits.test, answers, probabilities)


def _models(numeric: bool, seed: int, positive: str | None) -> dict[str, Any]:
    from sklearn.dummy import DummyClassifier
    from sklearn.ensemble import HistGradientBoostingClassifier
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.impute import SimpleImputer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    words = (TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True),)
    numbers = (SimpleImputer(strategy="median", keep_empty_features=True), StandardScaler())
    regression = make_pipeline(*(numbers if numeric else words), LogisticRegression(max_iter=1000))
    models = {"majority": DummyClassifier(strategy="prior")}
    models["always_positive"] = DummyClassifier(strategy="constant", constant=positive)
    models["logistic_regression"] = regression
    return models | ({"gradient_boosting": HistGradientBoostingClassifier(random_state=seed)} if numeric else {})


def _said(task: Task, case: Case, gold: dict[str, str]) -> str:
    """The answer ``gold`` in the words of the task; nothing else of the test case is in it."""
    return task.target(replace(case, gold=dict.fromkeys(case.gold, "") | gold, details={}))
