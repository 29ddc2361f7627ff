"""The documentation as a site: `uv run sphinx-build -W --keep-going docs build/docs`.

The pages are plain Markdown, to be read on GitHub too. What only a site has is added while it is built, by
`generated.py` beside this file: the sidebar, the policy reference, the API and the notebooks with their outputs.
"""

from __future__ import annotations

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

import kvlab  # noqa: E402

project = "kvlab"
author = "the kvlab authors"
release = version = kvlab.__version__

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "generated"]
root_doc = "index"
exclude_patterns = ["figures/*.html"]
smartquotes_action = "D"  # dashes; quotes stay as they are written

# Markdown and notebooks. Notebooks are shown with the outputs they are committed with, never executed; of a chart that
# is the picture, which needs no script from a network.
myst_enable_extensions: list[str] = []
myst_heading_anchors = 3
nb_execution_mode = "off"
nb_number_source_lines = False

# Docstrings use backticks for code, once or twice.
default_role = "code"
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autoclass_content = "class"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
python_maximum_signature_line_length = 90

html_theme = "furo"
html_title = "kvlab"
html_static_path = ["static"]
html_css_files = ["kvlab.css"]
html_copy_source = False
html_show_sphinx = False
html_show_copyright = False
