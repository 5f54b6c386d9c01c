"""Compiled loops: operators that oneDNN has no fast form of, where numba is installed and worth its loading."""
