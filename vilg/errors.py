"""Errors that a user can act on."""


class VilgError(Exception):
    """Something the user can put right; the message is one sentence that names the thing and the way out.

    The command-line tools print it without a traceback and exit with status 2.
    """


class ConfigError(VilgError):
    """A run configuration that cannot be used; the message starts with the dotted path of the key."""


class CheckpointError(VilgError):
    """Weights or training state that are missing, cut short, damaged or made for something else."""


class DataError(VilgError):
    """Data that cannot be read at all (a single bad sample is counted and skipped instead)."""


class ShapeError(VilgError, ValueError):
    """Tensors that do not fit a model, a grid or a cache; the message names both numbers."""
