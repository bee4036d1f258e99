"""Sphinx configuration. Build the site by ``nox -s docs``, or by ``sphinx-build -W -n docs build/docs``."""

import shutil
import sys
import tomllib
from pathlib import Path

import mlr3torch_py

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

from site_support import inventories, linkcode_resolve_at, setup  # noqa: E402, F401

PYPROJECT = tomllib.loads((HERE.parent / "pyproject.toml").read_text(encoding="utf-8"))
REPOSITORY = PYPROJECT["tool"]["hatch"]["metadata"]["hooks"]["custom"]["repository"]

project = "mlr3torch_py"
author = "the mlr3torch_py developers"
copyright = "2026, the mlr3torch_py developers"  # noqa: A001
version = release = mlr3torch_py.__version__
exclude_patterns = [
    "_inventories",
    "_lines.md",
    "auto_examples/*.ipynb",
    "examples",
    "gallery",
    "pictures",
    "**/sg_execution_times.rst",
    "sg_execution_times.rst",
]
extensions = [
    "myst_nb",
    "numpydoc",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.intersphinx",
    "sphinx.ext.linkcode" if REPOSITORY else "sphinx.ext.viewcode",
    "sphinx_copybutton",
    "sphinx_design",
    "sphinx_gallery.gen_gallery",
]
nitpicky = True

# The notebooks are shown with the outputs that they were saved with; another session runs them.
shutil.copytree(HERE.parent / "notebooks", HERE / "notebooks", dirs_exist_ok=True)
nb_execution_mode = "off"
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3
myst_links_external_new_tab = False

autodoc_typehints = "none"
autodoc_inherit_docstrings = False
autosummary_generate = True
autosummary_ignore_module_all = False
templates_path = ["_templates"]
toc_object_entries_show_parents = "hide"
numpydoc_show_class_members = False
numpydoc_xref_param_type = True
numpydoc_xref_ignore = "all"
numpydoc_xref_aliases = {
    "DataFrame": "pandas.DataFrame",
    "Module": "torch.nn.Module",
    "Pipeline": "sklearn.pipeline.Pipeline",
    "pandas.DataFrame": "pandas.DataFrame",
    "skorch.NeuralNet": "skorch.net.NeuralNet",
    "sklearn.pipeline.Pipeline": "sklearn.pipeline.Pipeline",
    "torch.nn.Module": "torch.nn.Module",
    "torch.Tensor": "torch.Tensor",
    "matplotlib.axes.Axes": "matplotlib.axes.Axes",
    "matplotlib.figure.Figure": "matplotlib.figure.Figure",
} | {name: f"mlr3torch_py.{name}" for name in mlr3torch_py.__all__}
intersphinx_mapping = inventories(HERE / "_inventories")

copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True

sphinx_gallery_conf = {
    "examples_dirs": "gallery",
    "gallery_dirs": "auto_examples",
    "filename_pattern": r"/plot_",
    "within_subsection_order": "FileNameSortKey",
    "show_memory": False,
    "show_signature": False,
    "download_all_examples": False,
    "plot_gallery": True,
    "abort_on_example_error": True,
}

if REPOSITORY:
    linkcode_resolve = linkcode_resolve_at(REPOSITORY)

html_theme = "pydata_sphinx_theme"
html_title = "mlr3torch_py"
html_favicon = "_static/logo.svg"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_sourcelink = False
html_theme_options = {
    "logo": {"text": "mlr3torch_py", "image_light": "_static/logo.svg", "image_dark": "_static/logo.svg"},
    "navbar_align": "left",
    "header_links_before_dropdown": 6,
    "show_toc_level": 2,
    "footer_start": ["copyright"],
    "footer_end": [],
    "secondary_sidebar_items": ["page-toc"],
    "pygments_light_style": "a11y-high-contrast-light",
    "pygments_dark_style": "a11y-high-contrast-dark",
} | ({"github_url": REPOSITORY} if REPOSITORY else {})
html_sidebars = {"changelog": [], "install": []}
