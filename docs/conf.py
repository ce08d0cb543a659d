"""How the documentation is built: `make docs`, from what is on this machine alone."""

import os
import sys
import tempfile
from pathlib import Path

DOCS = Path(__file__).parent
ROOT = DOCS.parent
sys.path[:0] = [str(DOCS / "_extensions"), str(ROOT)]
os.environ["PYTHONPATH"] = str(ROOT)  # the processes that a study starts measure with this checkout too
os.environ["WEANALYSIS_CACHE"] = tempfile.mkdtemp(prefix="weanalysis-docs-")  # the gallery begins with nothing

import weanalysis  # noqa: E402

project = "weanalysis"
author = "the weanalysis authors"
version = release = weanalysis.__version__
copyright = "the weanalysis authors, Apache License 2.0"

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_gallery.gen_gallery",
    "gallery_figures",
    "mathml",
    "no_network",
    "own_pages",
    "public_names",
]
exclude_patterns = ["_build", "gallery", "**/sg_execution_times.rst", "sg_execution_times.rst"]
suppress_warnings = ["config.cache"]  # the gallery's settings hold a function

# Pages are Markdown, docstrings plain text with backticks and examples (`public_names` escapes the rest).
myst_enable_extensions = ["dollarmath", "colon_fence"]
myst_heading_anchors = 4
myst_links_external_new_tab = False
default_role = "code"
highlight_language = "text"
pygments_style = "default"

autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
autodoc_member_order = "bysource"
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 100

sphinx_gallery_conf = {
    "examples_dirs": "gallery",
    "gallery_dirs": "auto_gallery",
    "filename_pattern": r"\.py$",
    "abort_on_example_error": True,
    "capture_repr": ("_repr_html_", "__repr__"),
    "image_scrapers": (),
    "reset_modules": ("gallery_figures.use_own_renderer",),
    "within_subsection_order": "FileNameSortKey",
    "download_all_examples": False,
    "remove_config_comments": True,
    "show_memory": False,
    "write_computation_times": False,
    "min_reported_time": 0,
    "show_signature": False,
    "plot_gallery": "True",
    "parallel": 2,
}

html_theme = "pydata_sphinx_theme"
html_title = f"weanalysis {version}"
html_static_path = ["_static"]
html_css_files = ["own.css"]
html_show_sourcelink = False
html_copy_source = False
html_context = {"default_mode": "auto"}
html_sidebars = {"changelog": [], "project/changelog": []}
html_theme_options = {
    "navbar_align": "left",
    "header_links_before_dropdown": 7,
    "show_toc_level": 2,
    "navigation_with_keys": False,
    "show_prev_next": False,
    "footer_start": ["copyright"],
    "footer_end": [],
}
