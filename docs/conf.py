"""Settings of the documentation. `make docs` builds it into docs/_build/html."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from segskd import __version__
from segskd.config import Recipe

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
autodoc_typehints = "description"
autodoc_member_order = "bysource"
autodoc_typehints_description_target = "documented"
# Types of other libraries: their own pages describe them, and are not asked, since a build needs no network.
nitpick_ignore_regex = [("py:.*", r"(?!segskd\.).*")]


def recipe_fields(part: type[BaseModel], place: str = "") -> Iterator[str]:
    """A row of a table for each field of a recipe, in the order of recipe.yaml."""
    for name, field in part.model_fields.items():
        inner = [kind for kind in (field.annotation, *get_args(field.annotation)) if _is_part(kind)]
        default = "" if field.default is PydanticUndefined or inner else f"`{field.default}`"
        yield f"| `{place}{name}` | {default} | {(field.description or '').replace('|', ' or ')} |"
        for kind in inner:
            yield from recipe_fields(kind, f"{place}{name}.")


def _is_part(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)


def setup(app: Any) -> None:
    """Writes the table that recipe.md includes."""
    rows = ["| field | default | meaning |", "|---|---|---|", *recipe_fields(Recipe)]
    build = Path(app.srcdir) / "_build"
    build.mkdir(exist_ok=True)
    (build / "recipe_fields.md").write_text("\n".join(rows) + "\n", encoding="utf-8")
