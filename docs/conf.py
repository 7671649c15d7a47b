"""The documentation site: ``make docs`` writes it to build/docs."""

from __future__ import annotations

from typing import Any

from docutils import nodes
from docutils.utils.math import latex2mathml
from sphinx.application import Sphinx
from sphinx.writers.html5 import HTML5Translator

import sketchlayers

project = "sketchlayers"
copyright = "the sketchlayers authors"
release = version = sketchlayers.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "sphinx_gallery.gen_gallery",
    "sphinxcontrib.programoutput",
]
templates_path = ["_templates"]
exclude_patterns = ["_templates", "examples", "**.ipynb"]
default_role = "py:obj"  # `name` in a docstring links to what has this name
nitpicky = False

# ---------------------------------------------------------------------------------------- pages

myst_enable_extensions = ["colon_fence", "deflist", "dollarmath", "fieldlist"]
myst_heading_anchors = 3
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True

html_theme = "furo"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_title = f"sketchlayers {release}"
html_show_sphinx = False
html_math_renderer = "mathml"
html_copy_source = False

# ------------------------------------------------------------------------------------ reference

autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_class_signature = "mixed"
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_use_rtype = False
python_maximum_signature_line_length = 90
python_use_unqualified_type_names = True

# -------------------------------------------------------------------------------------- gallery

sphinx_gallery_conf = {
    "examples_dirs": "examples",
    "gallery_dirs": "gallery",
    "filename_pattern": r"/\w+\.py$",
    "abort_on_example_error": True,
    "download_all_examples": False,
    "remove_config_comments": True,
    "min_reported_time": 10_000,
    "show_signature": False,
    "write_computation_times": False,
}


def inline_formula(writer: HTML5Translator, node: nodes.math) -> None:
    """Browsers know MathML: no script and no network is needed to show a formula."""
    writer.body.append(latex2mathml.tex2mathml(node.astext()))
    raise nodes.SkipNode


def formula(writer: HTML5Translator, node: nodes.math_block) -> None:
    """The same in a line of its own."""
    writer.body.append('<div class="math">')
    writer.body.append(latex2mathml.tex2mathml(node.astext(), as_block=True))
    writer.body.append("</div>\n")
    raise nodes.SkipNode


def leave_out(
    app: Sphinx, kind: str, name: str, member: Any, skip: bool, options: Any
) -> bool | None:
    """Fields of named tuples are described by their class; their own docstrings say nothing."""
    documentation = getattr(member, "__doc__", None) or ""
    return True if documentation.startswith("Alias for field number") else None


def readable_signature(
    app: Sphinx, kind: str, name: str, value: Any, options: Any, signature: str | None, returns: Any
) -> tuple[str, Any] | None:
    """Sphinx cannot parse the text that stands for a dataclass's default factory."""
    return signature and (signature.replace("<factory>", "..."), returns)


def setup(app: Sphinx) -> None:
    """Called by Sphinx."""
    app.connect("autodoc-process-signature", readable_signature)
    app.add_html_math_renderer("mathml", (inline_formula, None), (formula, None))
    app.connect("autodoc-skip-member", leave_out)
