"""Lets Beam build a source distribution with `--setup_file=./setup.py`; everything else is in pyproject.toml."""

from setuptools import setup

setup()
