"""Tasks whose answers are labels of closed lists: classification and triage."""

from medstudy.data.cases import Case
from medstudy.tasks.base import ACCURACY, UNPARSED, Answer, Metric, Task
from medstudy.tasks.reading import field_of, labels_in, said


class Classification(Task):
    """One label for a text, or for numbers written as text: the model answers with it alone. The card names it."""

    kind = "classification"
    metrics = (
        Metric("macro_f1", "f1", "", primary=True),
        *ACCURACY,
        UNPARSED,
        Metric("auroc", "auroc", "score_p_positive", optional=True),
        Metric("brier", "mean", "score_brier", optional=True),
    )

    def prompt(self, case: Case) -> str:
        [labels] = self.labels.values()
        return f"{case.text}\n\n{self.card.question}\nAnswer with one of: {', '.join(labels)}."

    def target(self, case: Case) -> str:
        [outcome] = self.labels
        return case.gold[outcome]

    def parse(self, text: str) -> Answer:
        [(outcome, labels)] = self.labels.items()
        if not said(text):
            return Answer("unparsed")
        field = field_of(text, ("final answer", "answer", "label", outcome.replace("_", " ")))
        found = labels_in(field or "", labels) or labels_in(text, labels)
        if len(found) != 1:
            return Answer("unparsed" if found else "out_of_range")
        return self.understood(text, {outcome: found[0]})


class ClinicalTriage(Task):
    """Who should see the patient, and how soon: the model answers on two lines, ``Provider: …`` and ``Urgency: …``."""

    outcomes = ("provider", "urgency")
    metrics = (
        Metric("provider_macro_f1", "f1", "provider", primary=True),
        Metric("urgency_macro_f1", "f1", "urgency", primary=True),
        Metric("under_triage", "share", "under_triage"),
        Metric("over_triage", "share", "over_triage"),
        UNPARSED,
    )

    def prompt(self, case: Case) -> str:
        allowed = [f"{name.capitalize()}: one of {', '.join(labels)}" for name, labels in self.labels.items()]
        return "\n".join([f"{case.text}\n\n{self.card.question}", *allowed])

    def target(self, case: Case) -> str:
        return "\n".join(f"{name.capitalize()}: {case.gold[name]}" for name in self.outcomes)

    def parse(self, text: str) -> Answer:
        if not said(text):
            return Answer("unparsed")
        fields = {name: field_of(text, name, self.outcomes) for name in self.outcomes}
        # without a line of its own the whole text is read: "see a nurse soon"
        found = {name: labels_in(value or text, self.labels[name]) for name, value in fields.items()}
        if all(len(labels) == 1 for labels in found.values()):
            return self.understood(text, {name: labels[0] for name, labels in found.items()})
        return Answer("out_of_range" if all(fields.values()) and not all(found.values()) else "unparsed")
