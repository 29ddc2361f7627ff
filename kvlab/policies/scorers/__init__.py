"""Scorers: retention by a score per token and head, one file for each method. This imports the files of the folder."""

import importlib
import pkgutil

for _file in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_file.name}")
