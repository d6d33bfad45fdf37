"""Sphinx: MyST pages, furo, and every example run as a doctest; `make docs` builds both."""

import doctest

from hyperopt_dl import __version__

project = "hyperopt_dl"
author = "The hyperopt_dl authors"
copyright = "The hyperopt_dl authors"
version = release = __version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.doctest",
    "sphinx.ext.napoleon",
]
exclude_patterns = ["_build"]
default_role = "literal"  # `name` in a docstring is code

html_theme = "furo"
html_title = f"hyperopt_dl {release}"
html_copy_source = False

myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_attr_annotations = False  # the signature has the types
napoleon_use_ivar = True
napoleon_use_rtype = False
python_maximum_signature_line_length = 88

# An exception's message is part of an example, so IGNORE_EXCEPTION_DETAIL stays off.
doctest_default_flags = (
    doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE | doctest.DONT_ACCEPT_TRUE_FOR_1
)
# Files that an example writes, such as runs/net.log, go to a directory that is removed after it.
doctest_global_setup = """
import os, tempfile, warnings
import optuna, torch
_home, _scratch = os.getcwd(), tempfile.TemporaryDirectory()
os.chdir(_scratch.name)
optuna.logging.set_verbosity(optuna.logging.WARNING)
warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
torch.set_num_threads(1)
"""
doctest_global_cleanup = """
os.chdir(_home)
_scratch.cleanup()
"""
