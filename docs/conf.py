"""Sphinx configuration. Build the site by ``sphinx-build -W docs build/docs``."""

import mlr3torch_py

project = "mlr3torch_py"
author = "the mlr3torch_py developers"
version = release = mlr3torch_py.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "numpydoc"]
exclude_patterns = ["pictures"]
html_theme = "alabaster"
html_theme_options = {"description": "The training callbacks of R's mlr3torch, for skorch"}
numpydoc_show_class_members = False
autodoc_typehints = "none"
