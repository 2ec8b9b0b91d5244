"""Settings that are right, to be changed by tests."""

import dataclasses
import json

from pursuhint_lib.settings import (
    Arm,
    Data,
    DistillSettings,
    Schedule,
    StudentSettings,
    TeacherSettings,
)

SCHEDULE = {"epochs": 4, "batch_size": 50, "learning_rate": 0.05}
GOOD = {
    "name": "mine",
    "title": "a study",
    "data": {"dataset": "digits"},
    "teacher": SCHEDULE,
    "student": SCHEDULE,
    "pairs": [{"teacher": "resnet14", "student": "resnet8x0.25"}],
    "methods": ["kd", "fitnet"],
    "arms": ["none", "stage-ends"],
    "seeds": [0, 1],
}


def changed(dotted: str, value) -> dict:
    """The good profile with one entry replaced, or taken out when the value is ``KeyError``."""
    content = json.loads(json.dumps(GOOD))
    *parents, last = dotted.split(".")
    inner = content
    for key in parents:
        inner = inner[key]
    if value is KeyError:
        del inner[last]
    else:
        inner[last] = value
    return content


STUDENT = StudentSettings(
    teacher=TeacherSettings("resnet20", Data("digits"), Schedule(10, 64, 0.05)),
    student="resnet8x0.25",
    method="fitnet",
    teacher_points=("layer1.2", "layer2.2"),
    student_points=("layer1.0", "layer2.0"),
    ce_weight=1.0,
    kd_weight=1.0,
    hint_weight=100.0,
    temperature=4.0,
    data=Data("digits"),
    schedule=Schedule(10, 64, 0.05, (5, 8)),
    seed=0,
)

ARMS = (Arm("none"), Arm("stage-ends", ("layer1.2", "layer2.2")))


def distill(**other) -> DistillSettings:
    shared = {
        f.name: getattr(STUDENT, f.name)
        for f in dataclasses.fields(StudentSettings)
        if f.name != "teacher_points"
    }
    return DistillSettings(**{**shared, "arms": ARMS, "profile": "mine", **other})
