"""What the file of a notebook says of itself."""

import ast
import json
from pathlib import Path

from ...settings import SettingsError


def declared(notebook: Path) -> dict:
    """The parameters that a notebook declares, with their values there.

    **Raises:** ``SettingsError`` for a file that is no notebook, is another than its name says, or declares
    no parameters.
    """
    try:
        cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
        sources = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
        tagged = ["".join(c["source"]) for c in cells if "parameters" in c["metadata"].get("tags", [])]
        nodes = [node for source in tagged for node in ast.parse(source).body]
        found = {n.target.id: ast.literal_eval(n.value) for n in nodes if isinstance(n, ast.AnnAssign)}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, SyntaxError) as error:
        raise SettingsError(
            f"{notebook} is no whole notebook ({type(error).__name__}: {error}); restore it"
        ) from None
    if len(tagged) != 1:
        raise SettingsError(f"{notebook.name} has {len(tagged)} cells tagged 'parameters'; it needs one")
    if not any(notebook.stem in source for source in sources):
        raise SettingsError(
            f"{notebook} is another notebook: it publishes nothing as {notebook.stem!r}; restore it"
        )
    return found
