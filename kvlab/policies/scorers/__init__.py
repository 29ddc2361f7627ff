"""Scorers: retention by a score per token and head. One file a method; the files of this folder are found here."""

import importlib
import pkgutil

for _file in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_file.name}")
