"""Which content each version of the prompt had when it was released: that is the content it has for ever.

Reactions are counted by version, so one version must not be two texts. Two records hold versions and content hashes:
``releases.json`` beside the shipped templates, and ``prompts.json`` in STATE_DIR for all others, which a worker writes
when a model was asked with a version for the first time; until then its file may change freely. A version is recorded
once: of two processes that record different contents the first one wins. Nothing here reads a template or decides what
is served; prompts/catalog.py does. A record of the same form keeps which versions have been defaults (app/prompts.py).
"""

import fcntl
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path

from models.errors import StoreError, StoreUnwritable
from prompts.registry import SHIPPED

SHIPPED_RELEASES = SHIPPED / "releases.json"
RECORD = "prompts.json"
DEFAULTS_RECORD = "prompt_defaults.json"

_HASH = re.compile(r"[0-9a-f]{12}")


def read_releases(file: Path) -> dict[str, str]:
    """Reads a record: content hashes by version, none where there is no file yet.

    Raises:
        StoreError: the file can't be read, or is no such record.
    """
    try:
        found = json.loads(file.read_bytes())
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise StoreError(file, f"the record of prompts can't be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise StoreError(file, f"no record of prompts ({error}): mend it or move it away") from error
    if not isinstance(found, dict) or not all(isinstance(v, str) and _HASH.fullmatch(v) for v in found.values()):
        raise StoreError(file, "no record of prompts (expected hashes by version): mend it or move it away")
    return found


def record_releases(file: Path, served: Mapping[str, str]) -> dict[str, str]:
    """Adds versions to a record on the disk, whole or not at all; one that is there already stays as it is.

    Blocks while another process records.

    Returns:
        The record as it is now.

    Raises:
        StoreError: as ``read_releases``.
        StoreUnwritable: the record can't be written.
    """
    try:
        lock = os.open(file.with_suffix(".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise StoreUnwritable(file, f"prompts can't be recorded ({error.strerror})") from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        recorded = read_releases(file)
        merged = {**served, **recorded}
        if merged != recorded:
            _write(file, merged)
        return merged
    except OSError as error:
        raise StoreUnwritable(file, f"prompts can't be recorded ({error.strerror})") from error
    finally:
        os.close(lock)


def _write(file: Path, releases: Mapping[str, str]) -> None:
    new = file.with_suffix(".new")
    with new.open("w", encoding="utf-8") as out:
        json.dump(releases, out, indent=2, sort_keys=True)
        out.write("\n")
        out.flush()
        os.fsync(out.fileno())
    new.replace(file)
    folder = os.open(file.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
