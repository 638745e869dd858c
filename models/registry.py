"""The versions of one model in a folder: artifact and card of each, the aliases, and how these moved.

::

    <registry>/<name>/versions/<n>/    n = 1, 2, …; never changed once it is there
                          model.ubj    the artifact, whose SHA-256 its card has
                          card.json    the card
                          card.sha256  the card's SHA-256, as sha256sum(1) writes and checks it
                      aliases.json     {"champion": "3", "shadow": "4"}
                      history.jsonl    a Rollout a line, written before the alias moves
                      lock             who publishes or moves an alias holds it (flock)

An artifact is XGBoost's own UBJ and is handed on as bytes: nothing is unpickled, and nothing is loaded here. ``fetch``
refuses a version whose card is missing, is not as it was published, can't be read, or is that of another artifact or of
other inputs, and says so; what can't be fetched can't be promoted. Readers take no lock and write nothing: for them a
registry may be read-only. Every function blocks on the disk: on an event loop call it in a thread.

models/card.py has the records, models/rollouts.py reads the history, models/scorer.py loads what is fetched.
"""

import contextlib
import datetime as dt
import hashlib
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TypeVar

import attrs
import msgspec

from models.card import CARD_SCHEMA, Action, Card, Rollout, feature_hash
from models.codec import decoder_for, encode_json
from models.errors import ModelError, ModelUnknown, PayloadError, StoreUnwritable
from models.files import append_line, locked, make_folder, replace_file, sync_folder, write_file
from models.rollouts import decode_history, earlier_versions

ALIASES = ("champion", "shadow")
"""The champion answers every request; a shadow is kept ready for a promotion, loaded by nobody and without traffic."""
STARTER_REASON = "the starter model"
"""Why the first version of an empty registry was promoted; in the history it tells that from a person's promotion."""
NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
LOCK_S = 10.0

_VERSION = re.compile(r"[1-9][0-9]{0,8}")
_ARTIFACT, _CARD, _CARD_HASH = "model.ubj", "card.json", "card.sha256"
_ALIASES, _HISTORY = "aliases.json", "history.jsonl"
_UBJ_START, _UBJ_END = b"{L", b"}"  # an object whose first key has a length of 8 bytes, as XGBoost writes every model

T = TypeVar("T")

_decode_card = decoder_for(Card)
_decode_aliases = decoder_for(dict[str, msgspec.Raw])
_decode_alias: Callable[[bytes], str | None] = decoder_for(str | None)  # type: ignore[arg-type]  # a union is no class


@attrs.frozen(kw_only=True)
class Stored:
    """A version that may be served: its artifact is the one that its card describes."""

    version: str
    artifact: bytes = attrs.field(repr=False)
    card: Card


class Registry:
    """The versions of the model ``name`` below ``folder``; nothing is made there before something is written.

    Raises:
        ModelError: the name is none.
    """

    def __init__(self, folder: Path, name: str) -> None:
        if not NAME.fullmatch(name):
            raise ModelError(repr(name), f"expected a name like {NAME.pattern}")
        self.name = name
        self.folder = folder / name
        self._versions = self.folder / "versions"

    def publish(self, artifact: bytes, card: Card) -> str:
        """Keeps a new version, on the disk and whole once this returns; no alias moves.

        Returns:
            Its number, the highest there is.

        Raises:
            ModelError: artifact and card do not belong together, or the card can't be kept as JSON.
            StoreUnwritable: the registry can't be written.
        """
        encoded = _encode("(new)", attrs.asdict(card))
        self._check("(new)", artifact, self._as_card("(new)", encoded))  # a NaN is null by now, and refused
        with self._locked():
            version = str(max(map(int, self.versions()), default=0) + 1)
            made = self._versions / ".new"
            shutil.rmtree(made, ignore_errors=True)  # left by a process that was killed; the lock is ours
            made.mkdir()
            write_file(made / _ARTIFACT, artifact)
            write_file(made / _CARD, encoded)
            write_file(made / _CARD_HASH, _hash_line(encoded))
            sync_folder(made)
            made.rename(self._versions / version)
            sync_folder(self._versions)
        return version

    def versions(self) -> list[str]:
        """All versions by number, whether or not they can be served.

        Raises:
            ModelError: the folder can't be read.
        """
        names = self._read(self.name, "versions", lambda: [entry.name for entry in self._versions.iterdir()])
        return sorted((name for name in names or () if _VERSION.fullmatch(name)), key=int)

    def resolve(self, name: str) -> str:
        """The version that is meant by its number or by an alias.

        Raises:
            ModelUnknown: there is none.
            ModelError: the registry can't be read.
        """
        if name in ALIASES:
            version = self.aliases().get(name)
            if version is None:
                raise ModelUnknown(name, "no version has this alias yet")
            return version
        self._require(name)
        return name

    def read_card(self, version: str) -> Card:
        """The card of a version; its artifact is not looked at.

        Raises:
            ModelUnknown: there is no such version.
            ModelError: the card is missing, can't be used (names the path of the field), or was changed.
        """
        content = self._read_part(version, _CARD)
        card = self._as_card(version, content)
        if self._read_part(version, _CARD_HASH) != (line := _hash_line(content)):
            digest = line.split()[0].decode()
            problem = f"its SHA-256 is {digest}, {_CARD_HASH} has another one: it was changed after it was published"
            raise ModelError(version, f"{_CARD}: {problem}")
        return card

    def fetch(self, version: str) -> Stored:
        """Artifact and card of a version, which belong together.

        Raises:
            ModelUnknown: there is no such version.
            ModelError: it must not be served; says why.
        """
        card = self.read_card(version)
        artifact = self._read_part(version, _ARTIFACT)
        self._check(version, artifact, card)
        return Stored(version=version, artifact=artifact, card=card)

    def aliases(self) -> Mapping[str, str]:
        """The version of each alias that has one.

        Raises:
            ModelError: the file of the aliases can't be used.
        """
        return self._known(self._read_aliases())

    def awaits_starter(self) -> bool:
        """Whether the starter model is still to be made, or to be promoted, and nobody has decided otherwise.

        There is no version at all; or only simulated ones, and never an alias. The latter is what a starter's process
        leaves that ended before its promotion, maybe with the line of the history that announces it.

        Raises:
            ModelError: the versions or the history can't be read.
        """
        versions = self.versions()
        if not versions:
            return True
        if (self.folder / _ALIASES).exists() or any(line.reason != STARTER_REASON for line in self.history()):
            return False
        try:
            return all(self.read_card(version).training.is_simulated for version in versions)
        except ModelError:  # what this version is, a person has to find out
            return False

    def promote(
        self,
        version: str,
        *,
        alias: str = ALIASES[0],
        reason: str = "",
        now: dt.datetime,
        replaces: bool = True,
    ) -> Rollout | None:
        """Moves an alias to a version; None when it is there already, and then nothing is written.

        Args:
            replaces: False: where the alias has a version already, nothing is moved either.

        Raises:
            ModelUnknown: there is no such version or alias.
            ModelError: the version must not be served; says why.
            StoreUnwritable: the registry can't be written.
        """
        _check_alias(alias)
        self.fetch(version)
        with self._locked():
            current = self.aliases().get(alias)
            if current == version or not (replaces or current is None):
                return None
            return self._move(alias, version, "promote", reason, now)

    def rollback(self, *, alias: str = ALIASES[0], reason: str = "", now: dt.datetime) -> Rollout:
        """Moves an alias back to the version that it had before its last move; a second rollback goes one further.

        Raises:
            ModelUnknown: there is no such alias.
            ModelError: there is no version before, or it must not be served; says why.
            StoreUnwritable: the registry can't be written.
        """
        _check_alias(alias)
        with self._locked():
            current = self.aliases().get(alias)
            earlier = earlier_versions(self.history(), alias, current)
            if not earlier:
                raise ModelError(alias, f"there is no version before {current or 'the first'} to roll back to")
            self.fetch(earlier[-1])
            return self._move(alias, earlier[-1], "rollback", reason, now)

    def demote(self, alias: str, *, reason: str = "", now: dt.datetime) -> Rollout | None:
        """Takes an alias away from its version; None when it has none, and then nothing is written.

        Raises:
            ModelUnknown: there is no such alias.
            ModelError: it is the champion, without which nothing would answer.
            StoreUnwritable: the registry can't be written.
        """
        _check_alias(alias)
        if alias == ALIASES[0]:
            raise ModelError(alias, "it answers every request: promote another version, or roll back")
        with self._locked():
            if alias not in self.aliases():
                return None
            return self._move(alias, None, "demote", reason, now)

    def history(self) -> list[Rollout]:
        """Every move of an alias, oldest first.

        Raises:
            ModelError: a line of the file can't be used; names it.
        """
        return self._read_history()[0]

    def stamp(self) -> tuple[object, ...]:
        """A value that is another one once an alias has moved, for who polls: two calls of stat, and never an error."""
        return tuple(_stamp(self.folder / name) for name in (_ALIASES, _HISTORY))

    def _check(self, version: str, artifact: bytes, card: Card) -> None:
        """Refuses what does not belong together."""
        if card.name != self.name:
            raise ModelError(version, f"{_CARD}: name: expected {self.name!r}, got {card.name!r}")
        for problem in (*_artifact_problems(artifact, card), *_input_problems(card)):
            raise ModelError(version, problem)

    def _as_card(self, version: str, content: bytes) -> Card:
        try:
            card = _decode_card(content)
        except PayloadError as error:
            raise ModelError(version, f"{_CARD}: {error.reason}") from error
        if card.card_schema != CARD_SCHEMA:
            problem = f"expected {CARD_SCHEMA}, got {card.card_schema}: another version of the application wrote it"
            raise ModelError(version, f"{_CARD}: card_schema: {problem}")
        return card

    def _require(self, version: str) -> None:
        known = self.versions()
        if version not in known:
            there_is = f"there is {_newest(known)}" if known else "nothing is published yet"
            raise ModelUnknown(repr(version[:64]), f"no such version; {there_is}")

    def _read_part(self, version: str, part: str) -> bytes:
        self._require(version)
        content = self._read(version, part, (self._versions / version / part).read_bytes)
        if content is None:
            raise ModelError(version, f"{part}: it is missing")
        return content

    def _read(self, version: str, part: str, read: Callable[[], T]) -> T | None:
        """Reads; None when there is nothing to read. The error names no path, for it may go into an HTTP answer."""
        try:
            return read()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise ModelError(version, f"{part}: can't be read ({error.strerror})") from error

    def _read_aliases(self) -> dict[str, msgspec.Raw]:
        content = self._read(self.name, _ALIASES, (self.folder / _ALIASES).read_bytes)
        try:
            return _decode_aliases(b"{}" if content is None else content)
        except PayloadError as error:
            raise ModelError(self.name, f"{_ALIASES}: {error.reason}") from error

    def _known(self, aliases: Mapping[str, msgspec.Raw]) -> Mapping[str, str]:
        found: dict[str, str] = {}
        for alias in ALIASES:
            try:
                version = _decode_alias(bytes(aliases.get(alias, msgspec.Raw(b"null"))))
            except PayloadError as error:
                problem = error.reason.removeprefix("payload: ")
                raise ModelError(self.name, f"{_ALIASES}: {alias}: {problem}") from error
            if version is not None:
                found[alias] = version
        return found

    def _read_history(self) -> tuple[list[Rollout], bytes]:
        """The records, and the bytes that hold them: what a crash has cut off is in neither."""
        content = self._read(self.name, _HISTORY, (self.folder / _HISTORY).read_bytes) or b""
        try:
            found, size = decode_history(content)
        except PayloadError as error:
            raise ModelError(self.name, f"{_HISTORY}: {error.reason}") from error
        return found, content[:size]

    def _move(self, alias: str, version: str | None, action: Action, reason: str, now: dt.datetime) -> Rollout:
        """Appends to the history, then replaces the file of the aliases; the lock is held."""
        aliases = self._read_aliases()
        former = self._known(aliases).get(alias)
        rollout = Rollout(at=now, alias=alias, version=version, former=former, action=action, reason=reason)
        line = _encode(version or alias, attrs.asdict(rollout), indent=-1)
        append_line(self.folder / _HISTORY, self._read_history()[1], line)
        others = {name: named for name, named in aliases.items() if name != alias}
        moved = others if version is None else others | {alias: version}
        replace_file(self.folder / _ALIASES, _encode(version or alias, moved))
        return rollout

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Alone among those who publish or move an alias; what fails on the disk meanwhile is StoreUnwritable."""
        try:
            make_folder(self._versions)
            with locked(self.folder / "lock", wait_s=LOCK_S):
                yield
        except OSError as error:
            raise StoreUnwritable(self.folder, f"the model registry can't be written ({error})") from error


def _check_alias(alias: str) -> None:
    if alias not in ALIASES:
        raise ModelUnknown(repr(alias), f"expected an alias: {' or '.join(ALIASES)}")


def _newest(versions: list[str]) -> str:
    """The versions, of many of them the newest."""
    return ("… " if len(versions) > 10 else "") + ", ".join(versions[-10:])


def _encode(version: str, value: Mapping[str, object], *, indent: int = 2) -> bytes:
    try:
        return msgspec.json.format(encode_json(value), indent=indent) + b"\n"
    except UnicodeEncodeError as error:  # an argument of the command line may hold bytes that are no UTF-8
        raise ModelError(version, f"{error.object[:64]!r}: expected text that UTF-8 can hold") from error


def _hash_line(card: bytes) -> bytes:
    return f"{hashlib.sha256(card).hexdigest()}  {_CARD}\n".encode()


def _artifact_problems(artifact: bytes, card: Card) -> Iterator[str]:
    """An empty artifact comes first: XGBoost ends the process that loads one."""
    if not artifact:
        yield f"{_ARTIFACT}: it is empty"
    digest = hashlib.sha256(artifact).hexdigest()
    if digest != card.artifact_hash:
        got = f"its SHA-256 is {digest} ({len(artifact)} bytes), the card's artifact_hash is {card.artifact_hash}"
        yield f"{_ARTIFACT}: {got}: it was changed or cut off, or is that of another card"
    if not (artifact.startswith(_UBJ_START) and artifact.endswith(_UBJ_END)):
        yield f"{_ARTIFACT}: expected a whole model in XGBoost's UBJ"


def _input_problems(card: Card) -> Iterator[str]:
    names = [one.name for one in card.inputs]
    if not names:
        yield f"{_CARD}: inputs: expected at least one"
    if len(set(names)) < len(names):
        yield f"{_CARD}: inputs: expected each name once"
    if card.feature_hash != (expected := feature_hash(names)):
        yield f"{_CARD}: feature_hash: expected {expected} for these inputs, got {card.feature_hash!r}"


def _stamp(path: Path) -> object:
    try:
        found = path.stat()
    except OSError as error:
        return error.errno
    return found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns
