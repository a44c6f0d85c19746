"""The flag --json of programs: a file for their results."""

from pathlib import Path

from absl import flags

from train.engine.config_flags import flag_path
from train.errors import RunError

_JSON = flags.DEFINE_string("json", None, "file to write the results to")


def json_path() -> Path | None:
    """The file that --json names, in a folder that is made if need be; None without the flag.

    Raises:
      RunError: the file cannot be written.
    """
    if not _JSON.value:
        return None
    path = flag_path("json", _JSON.value)
    if path.is_dir():
        raise RunError(f"--json={path} is a folder: name a file.")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"--json={path}: {path.parent} is no folder, nor can be made.") from error
    return path
