"""The model card of an exported network: what it is, how it was trained, how good it is, how to load it."""

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from ..data import Dataset
from ..distillers import distiller
from ..paths import TEMPLATES
from .formats import FORMS, INPUT, OPSET, OUTPUT
from .report import Exported, Subject


def model_card(subject: Subject, found: Exported, entry: Dataset) -> str:
    """The card as Markdown; its code blocks run in the folder of the files.

    **Arguments:** ``entry`` of the data set, completed.
    """
    pages = Environment(loader=FileSystemLoader(TEMPLATES), undefined=StrictUndefined, autoescape=False)
    pages.filters["numbers"] = lambda values: ", ".join(f"{value:g}" for value in values)
    record, settings = subject.record, subject.record.settings
    student = record.kind == "student"
    # What only a student's settings have, or only a teacher's.
    blank = {"teacher_points": (), "checkpoint": None}
    return pages.get_template("card.md.j2").render(
        network=settings["student" if student else "network"],
        subject=subject,
        record=record,
        settings=blank | settings,
        teacher=settings["teacher"] if student else settings,
        method=distiller(settings["method"]) if student else None,
        found=found,
        entry=entry,
        forms=FORMS,
        opset=OPSET,
        input=INPUT,
        output=OUTPUT,
    )
