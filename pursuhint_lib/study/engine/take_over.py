"""Last command of every step, ``take-over``.

Takes the executed notebook over into results/, without what changes from run to run, and writes the
stamp. Runs after each notebook, so it imports next to nothing.
"""

import json
from pathlib import Path

from ...files import replacing, write_json
from ...paths import StudyPaths

WIDGET = "application/vnd.jupyter.widget-view+json"


def finish_step(profile: str, step: str, key: str) -> None:
    """Take an executed notebook over and stamp the step as done.

    **Arguments:** ``key`` the hash in the stamp's name.

    **Raises:** ``FileNotFoundError`` when something that the notebook published is not there.
    """
    paths = StudyPaths(profile)
    published = paths.outputs_log(step).read_text().splitlines()
    missing = [path for path in published if not Path(path).is_file()]
    if missing:
        raise FileNotFoundError(f"step {step} ended without {missing[0]}")
    executed = json.loads(paths.draft(step).read_text(encoding="utf-8"))
    seconds = executed["metadata"]["papermill"]["duration"]
    notebook = paths.notebooks / f"{step}.ipynb"
    with replacing(notebook) as draft:
        draft.write_text(
            json.dumps(quiet(executed), indent=1, ensure_ascii=False, sort_keys=True) + "\n", encoding="utf-8"
        )
    write_json(
        paths.stamp(step, key),
        {"step": step, "seconds": seconds, "outputs": sorted({*published, str(notebook)})},
    )


def quiet(notebook: dict) -> dict:
    """The notebook without what changes from run to run or lives in JupyterLab only: times, progress,
    widgets, random cell names.
    """
    cells = [_quiet_cell(cell, number) for number, cell in enumerate(notebook["cells"])]
    kernel = {name: notebook["metadata"]["kernelspec"][name] for name in ("display_name", "language", "name")}
    return {
        **notebook,
        "cells": cells,
        "metadata": {"kernelspec": kernel, "language_info": {"name": "python"}},
    }


def _quiet_cell(cell: dict, number: int) -> dict:
    tags = cell["metadata"].get("tags")
    cell = {**cell, "id": f"cell-{number:02d}", "metadata": {"tags": tags} if tags else {}}
    if cell["cell_type"] == "code":
        kept = [
            output
            for output in cell["outputs"]
            if output.get("name") != "stderr" and WIDGET not in output.get("data", {})
        ]
        cell["outputs"] = [
            {**output, "metadata": {}} if "metadata" in output else output for output in _joined(kept)
        ]
    return cell


def _joined(outputs: list[dict]) -> list[dict]:
    """The outputs with printed text in one piece; how a busy machine's kernel has cut it is chance."""
    joined = []
    for output in outputs:
        if joined and output["output_type"] == joined[-1]["output_type"] == "stream":
            text = "".join([*joined.pop()["text"], *output["text"]])
            output = {**output, "text": text.splitlines(keepends=True)}
        joined.append(output)
    return joined
