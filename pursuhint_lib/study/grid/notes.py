"""What a person has written about the results of a profile: ``config/notes/<profile>.md``.

The file has a section for a step, under ``## <step>``, and one for ANSWERS.md and the report, under
``## answer``. Numbers are not written but named: ``{at}`` is the number of that name which the step has
published, and ``{<step>:at}`` is that of another step, in the answer only. ``config/notes/protocol.md`` is
about several profiles: ``{<profile>/<step>:at}``. The line below the head holds a checksum of all numbers and
tables that the text was written for; where they have changed, the text is to be read again.
"""

import hashlib
import json
import re
from collections.abc import Sequence

from ...files import naming_damage, read_json, replacing
from ...paths import StudyPaths, notes_file, shown
from ...settings import SettingsError, choose

ANSWER = "answer"
# What is named in place of a profile by the notes on all profiles of the protocol.
PROTOCOL = "protocol"
NUMBER_NAME = r"[\w.+-]+"
HEAD = re.compile(r"^## (\S+)\n+(?:<!-- written for (\w*) -->\n)?", flags=re.M)
PLACE = re.compile(rf"\{{(?:((?:[\w.-]+/)?[\w.+-]+):)?({NUMBER_NAME})\}}")


def read_notes(profile: str) -> dict[str, tuple[str, str]]:
    """Section → checksum in its head (empty where it has none), and its text."""
    path = notes_file(profile)
    if not path.is_file():
        return {}
    _, *parts = HEAD.split(path.read_text(encoding="utf-8"))
    sections = zip(parts[::3], parts[1::3], parts[2::3], strict=True)
    return {name: (stamp or "", text.strip()) for name, stamp, text in sections}


def numbers_of(profile: str, step: str) -> dict[str, dict | str]:
    """What a step, or the ``<profile>/<step>`` of another, has published: name → ``text`` and ``values``, and
    the checksum of each table.

    **Raises:** ``SettingsError`` for a file that is damaged.
    """
    other, _, name = step.rpartition("/")
    path = StudyPaths(other or profile).numbers(name)
    with naming_damage(path):
        return read_json(path) or {}


def filled(profile: str, section: str) -> str:
    """The text of a section with its numbers.

    **Raises:** ``SettingsError`` for a number that has not been published.
    """

    def number(found: re.Match) -> str:
        step = found[1] or section
        if section not in (ANSWER, step):
            raise SettingsError(f"section {section} names {found[0]}; only the answer names another step's")
        numbers = {name: entry for name, entry in numbers_of(profile, step).items() if " " not in name}
        if not numbers:
            of = step.rpartition("/")[0] or profile
            raise SettingsError(f"{step} of {profile} has published no numbers; run ./run_all.sh {of}")
        return numbers[choose(f"number of {step}", found[2], numbers)]["text"]

    return PLACE.sub(number, read_notes(profile)[section][1])


def checksum(profile: str, section: str) -> str:
    """One checksum of all numbers and tables of the steps that a section is about."""
    named = {step or section for step, _ in PLACE.findall(read_notes(profile)[section][1])}
    content = [numbers_of(profile, step) for step in sorted({section, *named})]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]


def current(profile: str, section: str) -> str:
    """The text of a section with its numbers, if these are still those that it was written for.

    **Raises:** ``SettingsError`` saying what to do where they are not.
    """
    text = filled(profile, section)
    if read_notes(profile)[section][0] != checksum(profile, section):
        raise SettingsError(
            f"section {section} of {shown(notes_file(profile))} was written for other numbers or tables; "
            "read it again beside those that are there now, mend it, and then run "
            f"python -m pursuhint_lib stamp {profile} {section}"
        )
    return text


def stamp(profile: str, sections: Sequence[str]) -> None:
    """Write into the heads of sections that they have been read beside the present numbers and tables.

    **Raises:** ``SettingsError`` for a section that is not there, or a number that has not been published.
    """
    notes = read_notes(profile)
    wanted = {choose(f"section of the notes on {profile}", section, notes) for section in sections}
    for section in wanted:
        filled(profile, section)

    def head(found: re.Match) -> str:
        given = checksum(profile, found[1]) if found[1] in wanted else found[2]
        return f"## {found[1]}\n" + (f"<!-- written for {given} -->\n" if given else "")

    with replacing(notes_file(profile)) as draft:
        text = HEAD.sub(head, notes_file(profile).read_text(encoding="utf-8"))
        draft.write_text(text, encoding="utf-8")


def shown_note(profile: str, section: str) -> str:
    """A section as a notebook or the report shows it, in Markdown.

    Where its numbers have changed it is marked, and keeps their names in their places; where there is no such
    section, the numbers are listed that one could be about.
    """
    notes = read_notes(profile)
    if section not in notes:
        numbers = [item for item in numbers_of(profile, section).items() if " " not in item[0]]
        lines = [f"- `{{{name}}}`: {entry['text']}" for name, entry in numbers]
        summary = f"<details><summary>The {len(numbers)} numbers that a note can name</summary>"
        place = shown(notes_file(profile))
        empty = f"*Nobody has written about these results yet. `{place}` takes it, under `## {section}`.*"
        return "\n".join([empty, "", summary, "", *lines, "", "</details>"]) if lines else empty
    try:
        return current(profile, section)
    except SettingsError as error:
        return f"**To be read again:** {error}.\n\n{notes[section][1]}"
