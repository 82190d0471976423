"""What the synthetic patients are made of: diseases, findings and a small shared vocabulary, as plain data.

The numbers and rules are simplified for a teaching benchmark and are no medical advice. Findings are
shared between diseases on purpose: one finding is ambiguous, the set decides.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

PROVIDERS = ("nurse", "pharmacist", "primary care", "specialist", "emergency")
URGENCIES = ("routine", "soon", "urgent", "immediate")


@dataclass(frozen=True)
class Disease:
    """One disease: ``findings`` are keys of `FINDINGS`; ``sex`` is "woman" where only women have it."""

    name: str
    synonyms: tuple[str, ...]
    findings: tuple[str, ...]
    treatment: str
    provider: str
    urgency: str
    department: str
    sex: str = ""


# Note phrase = how a patient says it (noun phrases, so that "I have", "I have no" and "any" all fit).
_FINDINGS = """
abdominal cramps = cramps in my belly; ankle swelling = puffy ankles;
arm pain = pain going down my arm; arm weakness = a weak arm; big toe pain = an agonising big toe;
blood in urine = blood in my pee; breathlessness = trouble getting my breath;
breathlessness lying flat = trouble breathing when I lie down; brittle nails = nails that keep breaking;
calf tenderness = a sore calf; chest tightness = a tight chest; chills = shivering fits;
cloudy urine = cloudy pee; cold intolerance = a body that is always cold;
colicky pain = pain that comes in waves; confusion = muddled thinking;
constipation = trouble opening my bowels; cough = a cough; cough at night = a cough that wakes me at night;
coughing up blood = blood when I cough; crushing chest pain = a heavy weight on my chest;
diarrhoea = runny poos; difficulty walking = trouble walking; dizziness = dizzy spells;
dry mouth = a dry mouth; dry skin = dry flaky skin; dysuria = burning when I pee;
facial droop = a face that drops on one side; fainting = a blackout; fatigue = a drained feeling;
fever = a high temperature; flank pain = pain in my side; foul urine = smelly pee;
green sputum = green phlegm; groin pain = pain down into my groin; headache = a sore head;
heartburn = a burning feeling behind my breastbone; heat intolerance = a body that is always hot;
hoarse voice = a croaky voice; jaw pain = an aching jaw; joint swelling = a swollen joint;
leg pain = a painful leg; leg swelling = a swollen leg; light sensitivity = eyes that hurt in bright light;
loss of appetite = a poor appetite; low mood = low spirits; nausea = a sick feeling;
neck stiffness = a stiff neck; pain after fatty meals = pain after greasy food;
pain during sex = pain when I have sex; pain going to the back = pain that goes through to my back;
pain on movement = pain with every step; pallor = a very pale face; palpitations = a racing heart;
pleuritic chest pain = a sharp pain when I breathe in; rash = spots on my skin;
restlessness = an urge to pace about; right lower abdominal pain = pain low down on the right of my belly;
right upper abdominal pain = pain under my right ribs; shoulder pain = a sore shoulder;
skin redness = red skin; skin tenderness = skin that hurts to touch;
slow healing wounds = cuts that will not heal; slurred speech = slurred words;
suprapubic pain = pain over my bladder; sweating = cold sweats; thirst = a terrible thirst;
tremor = shaky hands; upper abdominal pain = pain at the top of my belly;
urinary frequency = too many trips to pee; urinary urgency = a sudden rush to the toilet;
vaginal discharge = a white discharge down below; vaginal itching = itching down below;
visual disturbance = strange eyesight; vomiting = throwing up; vulval soreness = soreness down below;
night breathlessness = nights when I wake gasping; warm skin = hot skin; weight gain = extra weight;
weight loss = a drop in weight; wheeze = a whistling chest
"""

# Two lines each: name | synonyms | treatment | provider | urgency | department | sex, then the findings.
_DISEASES = """
urinary tract infection | cystitis, bladder infection, uti | nitrofurantoin | primary care | soon | urology
  dysuria, urinary frequency, urinary urgency, suprapubic pain, cloudy urine, blood in urine, foul urine
pyelonephritis | kidney infection, upper urinary tract infection | ceftriaxone | emergency | urgent | urology
  fever, chills, flank pain, vomiting, dysuria, cloudy urine, nausea
kidney stone | renal colic, ureteric stone, nephrolithiasis | diclofenac | emergency | urgent | urology
  flank pain, groin pain, blood in urine, colicky pain, restlessness, vomiting, nausea
vaginitis | vaginal thrush, vaginal candidiasis | clotrimazole | pharmacist | routine | gynaecology | woman
  vaginal itching, vaginal discharge, vulval soreness, pain during sex, dysuria, urinary frequency
pneumonia | chest infection, lung infection | amoxicillin | primary care | urgent | respiratory medicine
  cough, fever, green sputum, pleuritic chest pain, breathlessness, chills, fatigue
pulmonary embolism | clot on the lung, lung embolism | heparin | emergency | immediate | respiratory medicine
  breathlessness, pleuritic chest pain, coughing up blood, leg swelling, palpitations, fainting, cough
heart failure | cardiac failure, congestive heart failure | furosemide | specialist | urgent | cardiology
  breathlessness, breathlessness lying flat, night breathlessness, ankle swelling, weight gain, fatigue, cough
myocardial infarction | heart attack, acute coronary syndrome | aspirin | emergency | immediate | cardiology
  crushing chest pain, arm pain, jaw pain, sweating, nausea, breathlessness, fainting
asthma | asthma attack, bronchial asthma | salbutamol | nurse | soon | respiratory medicine
  wheeze, cough, cough at night, chest tightness, breathlessness, restlessness
appendicitis | inflamed appendix | an operation | emergency | immediate | surgery
  right lower abdominal pain, pain on movement, loss of appetite, nausea, vomiting, fever, diarrhoea
cholecystitis | gallbladder infection, gallstones | gallbladder removal | emergency | urgent | surgery
  right upper abdominal pain, pain after fatty meals, shoulder pain, colicky pain, fever, vomiting, nausea
pancreatitis | inflamed pancreas, acute pancreatitis | intravenous fluids | emergency | immediate | surgery
  upper abdominal pain, pain going to the back, vomiting, nausea, fever, loss of appetite, palpitations
gastroenteritis | stomach flu, infectious diarrhoea | oral rehydration | nurse | soon | gastroenterology
  diarrhoea, vomiting, abdominal cramps, nausea, fever, loss of appetite, headache
reflux disease | acid reflux, oesophagitis | omeprazole | pharmacist | routine | gastroenterology
  heartburn, upper abdominal pain, pain after fatty meals, hoarse voice, cough at night, chest tightness
migraine | migraine attack, vascular headache | sumatriptan | primary care | routine | neurology
  headache, light sensitivity, visual disturbance, nausea, vomiting, dizziness, fatigue
stroke | brain attack, cerebral infarction | thrombolysis | emergency | immediate | neurology
  facial droop, arm weakness, slurred speech, visual disturbance, confusion, dizziness, difficulty walking
meningitis | bacterial meningitis, brain lining infection | ceftriaxone | emergency | immediate | neurology
  neck stiffness, headache, fever, light sensitivity, rash, confusion, vomiting
hypothyroidism | underactive thyroid, thyroid failure | levothyroxine | primary care | routine | endocrinology
  cold intolerance, weight gain, constipation, dry skin, hoarse voice, low mood, fatigue
hyperthyroidism | overactive thyroid, thyrotoxicosis | carbimazole | specialist | soon | endocrinology
  heat intolerance, weight loss, palpitations, tremor, sweating, diarrhoea, restlessness
diabetes | diabetes mellitus, sugar diabetes | metformin | nurse | soon | endocrinology
  thirst, urinary frequency, dry mouth, weight loss, slow healing wounds, visual disturbance, fatigue
iron deficiency anaemia | anaemia, iron deficiency | iron tablets | primary care | routine | haematology
  pallor, brittle nails, fatigue, dizziness, palpitations, breathlessness, headache
gout | gouty arthritis, acute gout | colchicine | primary care | soon | rheumatology
  big toe pain, joint swelling, skin redness, warm skin, difficulty walking, fever
cellulitis | skin infection, soft tissue infection | flucloxacillin | primary care | urgent | dermatology
  skin redness, skin tenderness, warm skin, leg swelling, leg pain, fever, chills
deep vein thrombosis | leg clot, venous thrombosis | apixaban | specialist | urgent | haematology
  calf tenderness, leg swelling, leg pain, warm skin, ankle swelling, difficulty walking
"""


def _read_findings() -> dict[str, str]:
    pairs = (item.split(" = ") for item in _FINDINGS.replace("\n", " ").split(";"))
    return {note.strip(): lay.strip() for note, lay in pairs}


def _read_diseases() -> Iterator[Disease]:
    lines = iter(_DISEASES.strip().splitlines())
    for head, findings in zip(lines, lines, strict=True):
        name, synonyms, *care = head.split(" | ")
        yield Disease(name, tuple(synonyms.split(", ")), tuple(findings.strip().split(", ")), *care)


FINDINGS: dict[str, str] = _read_findings()
DISEASES: tuple[Disease, ...] = tuple(_read_diseases())


def _items(text: str) -> tuple[str, ...]:
    return tuple(text.split(", "))


# Long-term medicines: drug -> usual doses.
DRUGS: dict[str, tuple[str, ...]] = {
    "metformin": ("500 mg", "850 mg"),
    "ramipril": ("5 mg", "10 mg"),
    "amlodipine": ("5 mg", "10 mg"),
    "atorvastatin": ("20 mg", "40 mg"),
    "levothyroxine": ("50 mcg", "100 mcg"),
    "omeprazole": ("20 mg", "40 mg"),
    "sertraline": ("50 mg", "100 mg"),
    "bisoprolol": ("5 mg", "10 mg"),
    "apixaban": ("5 mg", "10 mg"),
    "warfarin": ("2 mg", "5 mg"),
    "ibuprofen": ("200 mg", "400 mg"),
    "paracetamol": ("500 mg", "1000 mg"),
}
FREQUENCIES = ("once daily", "twice daily", "three times daily", "at night", "as needed")
ALLERGIES = _items("penicillin, latex, peanuts, trimethoprim, codeine, iodine")
PAST_HISTORY = _items(
    "high blood pressure, diabetes, asthma, gout, depression, kidney stone, migraine, heart failure, "
    "reflux disease, high cholesterol"
)
OCCUPATIONS = _items("teacher, nurse, driver, farmer, cook, builder, office clerk, cleaner, student")
SOCIAL = _items(
    "lives alone, lives with family, smokes ten cigarettes a day, never smoked, drinks wine at weekends, "
    "does not drink alcohol"
)
DURATIONS = _items("1 day, 2 days, 3 days, 4 days, 5 days, 1 week, 2 weeks, 3 weeks, 2 months, 6 months")
PERSONS = ("woman", "man")
BLADDER_SYMPTOMS = _items("dysuria, urinary frequency, urinary urgency, suprapubic pain")

# Everyday findings that point at nothing: true, said, and beside the point.
MISLEADING = _items(
    "an old knee injury, a recent insect bite, a new pair of glasses, a stressful job, a recent holiday "
    "abroad, poor sleep, a family history of cancer, a sprained wrist, dental work last month, a recent "
    "flu vaccination"
)

# Signs that make a complaint an emergency: note phrase -> patient's words.
RED_FLAGS: dict[str, str] = {
    flag: FINDINGS[flag]
    for flag in _items(
        "crushing chest pain, facial droop, slurred speech, fainting, coughing up blood, neck stiffness, confusion"
    )
} | {
    "heavy bleeding": "bleeding that will not stop",
    "blue lips": "blue lips",
    "severe breathlessness": "not enough breath to finish a sentence",
}

# Laboratory values: name -> (unit, decimals, lower and upper limit of normal).
LABS: dict[str, tuple[str, int, float, float]] = {
    "temperature": ("C", 1, 36.0, 37.8),
    "heart rate": ("/min", 0, 55, 100),
    "respiratory rate": ("/min", 0, 10, 20),
    "systolic pressure": ("mmHg", 0, 100, 145),
    "white cells": ("x10^9/L", 1, 4.0, 11.0),
    "c-reactive protein": ("mg/L", 0, 0, 10),
    "lactate": ("mmol/L", 1, 0.5, 2.0),
    "creatinine": ("umol/L", 0, 50, 105),
    "urine leucocytes": ("/uL", 0, 0, 25),
}

# What patients write about: their words | note phrase | provider and urgency when nothing else applies.
_COMPLAINTS = """
a dressing that comes off | loose dressing | nurse | routine
stitches that pull | pulling stitches | nurse | soon
ears blocked with wax | ear wax | nurse | routine
a small cut that is weeping | weeping wound | nurse | soon
a plaster cast that feels loose | loose cast | nurse | routine
itchy eyes from hay fever | hay fever | pharmacist | routine
a stuffy nose from a cold | nasal congestion | pharmacist | soon
a burning feeling after meals | heartburn | pharmacist | routine
itching between my toes | athlete's foot | pharmacist | routine
hiccups after my new tablets | side effect | pharmacist | soon
burning when I pee | dysuria | primary care | soon
an ear that aches | earache | primary care | soon
a cough with green phlegm | productive cough | primary care | soon
a bad back after lifting | back pain | primary care | routine
low spirits most days | low mood | primary care | soon
a mole that has changed | changing mole | specialist | soon
a lump in my breast | breast lump | specialist | urgent
a flare of my rheumatoid joints | rheumatoid flare | specialist | soon
more seizures than usual | more seizures | specialist | urgent
more shaking from my Parkinson disease | worse tremor | specialist | soon
"""
COMPLAINTS: dict[str, tuple[str, str, str]] = {
    words: (note, provider, urgency)
    for words, note, provider, urgency in (line.split(" | ") for line in _COMPLAINTS.strip().splitlines())
}
