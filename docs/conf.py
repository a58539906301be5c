"""Settings of the documentation. `make docs` builds it into docs/_build/html."""

import re
from pathlib import Path
from typing import Any

from segskd import __version__
from segskd.config import SCHEMA

project = "SegSKD"
release = version = __version__
copyright = "the authors of SegSKD"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = "SegSKD"
html_copy_source = html_show_copyright = False
myst_heading_anchors = 3
add_module_names = False
python_use_unqualified_type_names = True
maximum_signature_line_length = 90
autodoc_member_order = "bysource"
autodoc_type_aliases = {"Listener": "Listener", "Place": "Place", "RecipeLike": "RecipeLike"}
# Types of other libraries: their own pages describe them, and are not asked, since a build needs no network.
nitpick_ignore_regex = [("py:.*", r"(?!segskd\.).*")]


def plain_aliases(_app: Any, _what: str, _name: str, _object: Any, _options: Any, signature: Any, result: Any) -> Any:
    """A signature in which a type's alias inside a union has its name alone, as it has elsewhere."""
    return signature and re.sub(r"TypeAliasForwardRef\('(\w+)'\)", r"\1", signature), result


def setup(app: Any) -> None:
    """Writes the table that recipe.md includes."""
    app.connect("autodoc-process-signature", plain_aliases)
    rows = ["| field | flag | meaning |", "|---|---|---|"]
    for field in SCHEMA:
        flag = f"`{field.flag}`" if field.display else ""
        meaning = field.flag_help if field.description else ""
        rows.append(f"| `{field.dotted}` | {flag} | {meaning} |")
    build = Path(app.srcdir) / "_build"
    build.mkdir(exist_ok=True)
    (build / "recipe_fields.md").write_text("\n".join(rows) + "\n", encoding="utf-8")
