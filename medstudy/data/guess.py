"""What part each column of an undescribed table plays, by names and values, and why it is thought."""

import re
from decimal import Decimal
from typing import Any

import pandas as pd

from medstudy.data.card import code_key
from medstudy.data.cases import DataError
from medstudy.data.load import NO_VALUE
from medstudy.data.rows import as_number, loose, plain
from medstudy.tasks import TASK_TYPES

#: What columns are called, by the part that they play.
NAMES = {
    "group_id": r"^(mrn|pid)$|(^|[-_. ])(pat(ient(en)?)?|subject|person)[-_. ]*(id|n[ro]|num(mer|ber)|key)?\.?$"
    r"|(^|[-_. ])(hospital|fall)[-_. ]*(id|n[ro]|num(mer|ber)|key)\.?$",
    "case_id": r"(^|[-_. ])(id|nr|no|number|key)\.?$|nummer$",
    "text": r"complain|text|note|message|nachricht|report|question|dialog|convers|histor|abstract|narrat|vignet|reason",
    "urgency": r"urgen|acuity|triage|esi\b|ktas|mts\b|priorit|level|dringlich",
    "provider": r"provider|dispos|destination|special|department|seen[_ ]by|referr|team|fachgr|abteilung",
    "summary": r"summary|section_text|target|note|impression|reference",
    "diagnosis": r"^answer$|diagnos|\bdx\b|correct",
    "label": r"label|class|outcome|target|categor|diagnos|status|result|\bdx\b",
}
#: A name that says no more than that it is the answer; others may only hold a word of it, as marital_status does.
ANSWER = r"((expert|gold|final)[-_. ]*)?(label|outcome|class|diagnos[ei]s?|target)([-_. ]*(expert|gold|final))?"
#: Columns that are often written when the answer is known already, and dates.
AFTER = r"diagnos|dispos|expert|error|mistriage|outcome|stay|duration|discharge|final|\bicd|result|correct|date|datum"
#: A column with more different values than this is no label, and one with more than these is no code.
MOST_LABELS, MOST_CODES = 30, 8
#: Several words that fewer rows have as their answer are a remark and no label.
FEWEST_OF_A_LABEL = 3


class Guess:
    """Columns that have no part yet, the labels of the answers, and the reasons."""

    def __init__(self, task: str, frame: pd.DataFrame, decimal: str, why: list[str]) -> None:
        self.task, self.decimal, self.why = task, decimal, why
        #: by column the cells that hold a value, as text
        self.values = {name: frame[name].map(plain).dropna().map(str) for name in frame}
        self.free, self.rows = list(self.values), len(frame)
        self.used: list[str] = []
        self.labels: dict[str, list[str]] = {}
        #: by column the words in it that mean no value
        self.missing: dict[str, list[str]] = {}

    def columns(self) -> dict[str, Any]:
        """The card's columns; fills ``labels``."""
        kind = TASK_TYPES[self.task]
        found: dict[str, Any] = {}
        for part in ("group_id", "case_id"):
            # a hospital's number may be its own
            named = sorted(self._named(part), key=lambda name: not re.search("pat|subj|person|mrn|pid", name.lower()))
            once = [name for name in named if self.values[name].nunique() == self.rows]
            for name in (named if part == "group_id" else once)[:1]:
                found[part] = self._take(name, part, "by its name" + ", each there once" * (name in once))
        self.free = [name for name in self.free if not re.search(NAMES["group_id"], name, re.I)]  # no id is a value
        if "group_id" not in found:
            several = {name: cells.nunique() for name, cells in self.values.items()}
            repeated = [f"'{name}' ({n} values)" for name, n in several.items() if 20 < n < self.rows]
            hint = f"; columns that repeat values: {', '.join(repeated)}" if repeated else ""
            self.why.append(f"group_id: NO PATIENT'S COLUMN FOUND, so one patient may be in two splits{hint}")
        found["gold"] = {o: self._answer(o, o in kind.open_outcomes) for o in kind.outcomes or ("label",)}
        self.free = [name for name in self.free if not re.search(AFTER, name, re.IGNORECASE)]
        text = self._text() if self.task != "numeric_classification" else ""
        fields = self._fields() if self.task in ("numeric_classification", "clinical_triage") else []
        found["text"] = "\n".join((["{" + text + "}"] if text else []) + (["{fields}"] if fields else []))
        if not found["text"]:
            raise DataError(f"no column is left for the text (columns: {', '.join(self.values)})")
        found |= {"fields": fields, "missing": self.missing}
        found["exclude"] = [name for name in self.values if name not in self.used]
        self.why.append(f"not shown to the model (exclude): {', '.join(found['exclude']) or 'no column'}")
        return found

    def _take(self, name: str, part: str, why: str) -> str:
        self.free.remove(name)
        self.used.append(name)
        self.why.append(f"{part}: column '{name}' ({why})")
        return name

    def _named(self, part: str) -> list[str]:
        return [name for name in self.free if re.search(NAMES.get(part, part), name, re.IGNORECASE)]

    def _answer(self, outcome: str, is_open: bool) -> dict[str, Any]:
        """The answer's column: by its name (an expert's before others), else the last that could be it."""
        many = {name: self.values[name].nunique() for name in self.free}
        fit = [name for name, n in many.items() if n > 1 and (is_open or n <= min(MOST_LABELS, self.rows - 1))]
        named = [name for name in self._named(outcome) if name in fit]
        named.sort(key=lambda name: not re.search("expert|gold|final", name, re.IGNORECASE))
        named.sort(key=lambda name: not re.fullmatch(ANSWER, name, re.IGNORECASE))
        if not fit:
            raise DataError(f"no column looks like the answer '{outcome}' (columns: {', '.join(self.values)})")
        why = "by its name" if named else "A GUESS: the last that could be it; see columns.gold"
        if named[1:] and not is_open:
            why += f"; left out, as they may be others' answers to the same: {', '.join(named[1:])}"
        column = self._take((named or fit[-1:])[0], outcome, why)
        if is_open:
            return {"column": column}
        for other in named[1:]:  # another's judgement of the same gives the answer away
            self.free.remove(other)
        return {"column": column, "map": self._map(column, outcome)}

    def _map(self, column: str, outcome: str) -> dict[str, str]:
        """Value -> label; spellings that differ in case or blanks are one. Numbers of urgency are put in order."""
        values = self.values[column].map(code_key)
        signs = values.str.fullmatch(r"[-+]+").all()  # of + and - the one is no value as little as the other
        no_value = frozenset() if signs else NO_VALUE - {"none", "unknown", "na"}
        if none := sorted(set(values[values.str.casefold().isin(no_value)])):
            self.missing[column] = none
            self.why.append(f"{outcome}: {none} taken for no value; see columns.missing")
        counts = values[~values.isin(none)].value_counts()
        remarks = _remarks(counts)  # a label stands in every report
        if remarks and len(counts) - len(remarks) > 1:
            self.missing[column] = none + remarks
            self.why.append(f"{outcome}: TAKEN FOR REMARKS, their rows are left out: {remarks}; see columns.missing")
            counts = counts.drop(remarks)
        if rare := [value for value, n in counts.items() if n < FEWEST_OF_A_LABEL and not value.isdecimal()]:
            what = "a label stands in every report; if one is a name or a remark, move it to columns.missing"
            self.why.append(f"{outcome}: IN ONE OR TWO ROWS ONLY: {rare}; {what}")
        first = {loose(value): value for value in reversed(counts.index)}  # the most frequent spelling stays
        digits = all(value.isdecimal() for value in first)
        kind = "level" if outcome == "urgency" else "class"
        labels = {v: f"{kind} {v}" if digits else first[v] for v in sorted(first, key=int if digits else str)}
        labels = {"0": "no", "1": "yes"} if set(labels) == {"0", "1"} else labels
        self.labels[outcome] = list(labels.values())[:: -1 if digits and outcome == "urgency" else 1]
        self.why.append(f"{outcome}: " + ", ".join(f"{value!r} {n} x" for value, n in counts.items()))
        if outcome == "urgency":
            how = "1 as the most urgent" if digits else "BY THE ALPHABET: order labels.urgency by hand"
            self.why.append(f"urgency from the least: {', '.join(self.labels[outcome])} ({how})")
        return {value: labels[loose(value)] for value in counts.index}

    def _text(self) -> str:
        """By its name, else the column of the longest texts."""
        length = {name: self.values[name].str.len().mean() for name in self.free if len(self.values[name])}
        long = [name for name in length if length[name] > 5 and not re.search("[{}]", name)]
        named = [name for name in self._named("text") if name in long]
        found = max(named or long, key=length.__getitem__, default="")
        return self._take(found, "text", "by its name" if named else "the longest texts") if found else ""

    def _fields(self) -> list[dict[str, Any]]:
        """Columns of numbers and of few codes; fills ``missing``."""
        fields: list[dict[str, Any]] = []
        for name in list(self.free):
            none = sorted({value for value in self.values[name] if value.casefold() in NO_VALUE})
            given = self.values[name][~self.values[name].isin(none)]
            numbers = given.map(lambda value: as_number(value.lstrip("<>≤≥~= "), self.decimal))
            is_number = numbers.notna()
            field: dict[str, Any] = {"column": name, "wording": name.replace("_", " ")}
            if len(given) and is_number.mean() > 0.7 and given[~is_number].nunique() <= 5:
                none += sorted(set(given[~is_number]))
                written = max(len(n.partition(self.decimal)[2]) for n in given[is_number])
                # six leading digits: behind them is noise of arithmetic
                places = (-int(Decimal(f"{number:.6g}").as_tuple().exponent) for number in numbers[is_number])
                field["decimals"] = min(12, max(min(3, written), *places))
            elif 1 < given.nunique() <= MOST_CODES:
                codes = given.map(code_key).value_counts()
                if remarks := _remarks(codes):
                    self.why.append(
                        f"{name}: NOT SHOWN, as {codes[remarks].sum()} rows hold remarks; see columns.fields"
                    )
                    continue
                field["map"] = {value: value for value in sorted(codes.index)}
            else:
                continue
            fields.append(field)
            self.missing |= {name: none} if none else {}
            self._take(name, "number" if "decimals" in field else "code", f"no value: {none}" if none else "its values")
        return fields


def _remarks(counts: pd.Series) -> list[str]:
    """Of values with their numbers of rows, several words that one or two rows have: they may tell of a patient."""
    return [value for value, n in counts.items() if n < FEWEST_OF_A_LABEL and " " in value]
