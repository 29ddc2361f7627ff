"""Experiments from files: one TOML file becomes independent cells, whose rows are kept one file a cell.

``experiment`` reads a file, ``cell`` executes one cell, ``store`` keeps what came out, ``sweep`` does what is missing.
"""
