"""A laboratory panel as text: urosepsis, yes or no.

Values share one hidden severity, so they are correlated; patients differ.
With z = (value - centre) / spread, the label is drawn with probability
``1 / (1 + exp(-SLOPE * (sum(weight * z) - THRESHOLD)))``, so that no model can be right always.
Values go missing at random after the label was drawn.
"""

from __future__ import annotations

import math
import random
from functools import partial

from demo import medicine as med
from demo.writing import Draft, Layout, write_cases
from medstudy.data.cases import Case

# name: (centre, spread, correlation with severity, weight in the score)
PANEL: dict[str, tuple[float, float, float, float]] = {
    "temperature": (37.9, 0.9, 0.6, 0.7),
    "heart rate": (96, 17, 0.6, 0.5),
    "respiratory rate": (20, 4.5, 0.6, 0.5),
    "systolic pressure": (116, 19, -0.6, -0.8),
    "white cells": (11.5, 4.0, 0.5, 0.4),
    "lactate": (2.0, 0.9, 0.7, 1.2),
    "creatinine": (105, 32, 0.4, 0.2),
    "urine leucocytes": (160, 110, 0.4, 0.8),
}
SLOPE, THRESHOLD = 1.6, 0.0
MISSING = 0.08
_FLOOR = {"lactate": 0.4, "white cells": 1.0, "creatinine": 30, "urine leucocytes": 0, "respiratory rate": 8}


def generate(n: int, seed: int) -> list[Case]:
    """Write ``n`` panels; the group is the patient, ``details["features"]`` holds the numbers or None."""
    return write_cases("panel", n, seed, (20_000,), partial(_draft, seed))


def probability(values: dict[str, float]) -> float:
    """Probability of urosepsis for a complete panel: the best that any classifier can know."""
    score = sum(weight * (values[k] - centre) / spread for k, (centre, spread, _, weight) in PANEL.items())
    return 1 / (1 + math.exp(-SLOPE * (score - THRESHOLD)))


def _draft(seed: int, layout: Layout, turn: int, rng: random.Random) -> Draft:
    patient = random.Random(f"patient {seed} {layout[0]}").gauss(0, 1)
    severity = 0.7 * patient + math.sqrt(1 - 0.7**2) * rng.gauss(0, 1)
    values = {name: _measure(name, severity, rng) for name in PANEL}
    label = "yes" if rng.random() < probability(values) else "no"
    shown = {name: None if rng.random() < MISSING else value for name, value in values.items()}
    return Draft("; ".join(_write(k, v) for k, v in shown.items()), {"label": label}, {"features": shown})


def _measure(name: str, severity: float, rng: random.Random) -> float:
    centre, spread, load, _ = PANEL[name]
    z = load * severity + math.sqrt(1 - load**2) * rng.gauss(0, 1)
    return round(max(_FLOOR.get(name, 0), centre + spread * z), med.LABS[name][1])


def _write(name: str, value: float | None) -> str:
    unit, decimals = med.LABS[name][:2]
    return f"{name} not done" if value is None else f"{name} {value:.{decimals}f} {unit}"
