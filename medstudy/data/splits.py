"""Splits: by group, never overlapping, the test split the same for every seed.

A study asks for a number of cases, in proportion to the answers however rare; scikit-learn's group splitters draw a
share of the groups. So groups are put in one random order, and the splits are taken from its front.
"""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import pandas as pd

from medstudy.data.cases import Case, DataError, masked
from medstudy.params import RunParams

#: Shares taken where the source fixes no split and the number asked for is 0.
TEST_SHARE, VALIDATION_SHARE, TRAIN_SHARE = 0.25, 0.1, 0.5


@dataclass(frozen=True)
class Splits:
    """Lists of cases that share no group: for SFT, for what comes after it, for choosing, for the figures."""

    train: list[Case]
    prefer: list[Case]
    validation: list[Case]
    test: list[Case]

    def all(self) -> list[Case]:
        """Every case that a study uses, train first."""
        return [*self.train, *self.prefer, *self.validation, *self.test]

    @property
    def labelled(self) -> list[Case]:
        """What all arms together know of: recorded answers of train, right ones of prefer."""
        return [*(case.recorded() for case in self.train), *self.prefer]


def split_cases(cases: Sequence[Case], params: RunParams) -> Splits:
    """Draw the splits of one run. Splits that the source fixes are kept.

    The test split depends on the cases, `n_test` and `split_seed` only; validation, train and prefer are drawn
    from the rest by `seed`. A smaller split is the beginning of a larger one. 0 asks for all cases there
    are; where the split has first to be carved out, for a quarter (test), a tenth (validation), a half (train).
    DataError where more cases are asked for than there are, or a split would hold one answer only.
    """
    given = {f.name: [c for c in cases if (c.split or "train") == f.name] for f in fields(Splits)}

    def draw(name: str, rest: list[Case], n: int, share: float) -> tuple[list[Case], list[Case]]:
        """The split that the source fixes; without one it is carved out of the rest."""
        if given[name]:
            return _take(name, _shuffled(given[name], params.split_seed if name == "test" else params.seed), n), rest
        return _carve(name, rest, n, share)

    test, rest = draw("test", _shuffled(given["train"], params.split_seed), params.n_test, TEST_SHARE)
    validation, rest = draw("validation", _shuffled(rest, params.seed), params.n_valid, VALIDATION_SHARE)
    if params.n_train and not given["prefer"]:
        train, rest = _carve("train", rest, params.n_train, TRAIN_SHARE)
        prefer = _take("prefer", rest, params.n_prefer)
    else:
        prefer, rest = draw("prefer", rest, params.n_prefer, 1 - TRAIN_SHARE)
        train = _take("train", rest, params.n_train)
    for outcome in sorted(cases[0].gold.keys() - cases[0].open_outcomes):
        for name, split in (("train", train), ("test", test)):
            if len(answers := {case.gold[outcome] for case in split}) == 1:
                told = f"all {masked(len(split), False)} cases of the {name} split have one {outcome}"
                raise DataError(f"{told}, '{answers.pop()}'; raise n_{name}, or check the source's own splits")
    return Splits(train, prefer, validation, test)


def _shuffled(cases: Sequence[Case], seed: int) -> list[Case]:
    """Cases in random order, groups kept together, every stretch with about the same mix of answers."""
    members: dict[str, list[Case]] = {}
    for case in cases:
        members.setdefault(case.group_id, []).append(case)
    rng = np.random.default_rng(seed)
    groups = pd.DataFrame({"id": rng.permutation(sorted(members))})
    groups["stratum"] = [_stratum(members[i]) for i in groups["id"]]
    by = groups.groupby("stratum")["id"]
    start = groups["stratum"].map({stratum: rng.random() for stratum in sorted(set(groups["stratum"]))})
    # the k-th of a stratum's n groups stands at (k + start) / n of the way: systematic sampling
    groups["place"] = (by.cumcount() + start) / by.transform("size")
    return [case for i in groups.sort_values("place", kind="stable")["id"] for case in members[i]]


def _stratum(cases: list[Case]) -> str:
    """The answers that most of a group's cases have; open answers do not count."""
    answers = [json.dumps({k: v for k, v in c.gold.items() if k not in c.open_outcomes}, sort_keys=True) for c in cases]
    return Counter(answers).most_common(1)[0][0]


def _take(name: str, cases: list[Case], n: int) -> list[Case]:
    name = {"validation": "valid"}.get(name, name)
    if n > len(cases) or not cases:
        # whether the source is private is not known here
        there, groups = (masked(len(found), False) for found in (cases, {c.group_id for c in cases}))
        told = f"n_{name} = {n}, but there are {there} cases (in {groups} groups) for it"
        remedy = "ask for fewer, here or in a split drawn before (first test, then validation, train, prefer)"
        raise DataError(f"{told}; {remedy}")
    return cases[:n] if n else cases


def _carve(name: str, cases: list[Case], n: int, share: float) -> tuple[list[Case], list[Case]]:
    """The first cases, and the rest without their groups (the rest of a group cut through goes unused)."""
    taken = _take(name, cases, n or max(1, round(share * len(cases))))
    groups = {case.group_id for case in taken}
    return taken, [case for case in cases if case.group_id not in groups]
