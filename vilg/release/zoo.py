"""Where released models lie: a folder that a user names, or a name in one of the zoos."""
import os
from pathlib import Path

from vilg.errors import CheckpointError, VilgError
from vilg.release.folder import DESCRIPTION, describe


def find_model(name_or_folder: str | Path, *kinds: str) -> Path:
    """The folder of a released model: a path, or a name in $VILG_MODEL_ZOO, ./model_zoo or the zoo beside the package.
    Raises CheckpointError that lists the names there are, of ``kinds`` where the caller can use no others."""
    given = Path(name_or_folder)
    zoos = [Path(os.environ["VILG_MODEL_ZOO"])] if "VILG_MODEL_ZOO" in os.environ else []
    zoos += [Path("model_zoo"), Path(__file__).resolve().parents[2] / "model_zoo"]
    for candidate in (given, *(zoo / given for zoo in zoos)):
        if (candidate / DESCRIPTION).is_file():
            return candidate
    if any(given.glob("checkpoints/step-*")):
        raise CheckpointError(f"{given}: is a run's output, not a model; " + (
            f"its model is {given / 'model'}" if (given / "model" / DESCRIPTION).is_file() else
            f"make a model of its newest checkpoint with `python tools/export.py {given}`"))
    names = sorted({path.parent.name for zoo in zoos for path in zoo.glob(f"*/{DESCRIPTION}")
                    if _is_of(path.parent, kinds)})
    raise CheckpointError(f"{name_or_folder}: no such model; give a folder that holds a {DESCRIPTION}"
                          + (f", or one of {', '.join(names)}" if names else ""))


def _is_of(folder: Path, kinds: tuple[str, ...]) -> bool:
    try:
        return describe(folder)[0]["kind"] in kinds or not kinds
    except VilgError:
        return False
