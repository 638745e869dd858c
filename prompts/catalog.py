"""The prompt variants that are served now, kept in step with the files of some folders while the process runs.

``Catalog.variants`` is an immutable snapshot that is replaced whole. ``refresh`` looks for changes, which a worker asks
for once a second in a thread (app/prompts.py). A file is taken once it has been still from one look to the next, so
one that is being written is never served by halves; at the start files are taken as they are. What can't be served is
left out, or goes on as it was, and ``problems`` says why: a file that is no variant, a version that another file has,
and a released version whose content has changed.

A version is released when a model is asked with it for the first time (``release``); until then it is a draft, whose
file may change, and tips that are made without a model leave it one. From then on it is the content with that hash or
nothing: a running process goes on with the content that it has, a new one doesn't know the version. A file that is
removed takes its version with it. Which version answers a request is decided in prompts/selection.py.
"""

import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Literal

import attrs

from models.errors import AppError, DeclarationError
from prompts.registry import Variant, load_variant, variant_files
from prompts.releases import SHIPPED_RELEASES, read_releases, record_releases
from prompts.samples import SAMPLES

Stamp = tuple[int, int, int]
"""Time of the last change in nanoseconds, size and inode."""

State = Literal["released", "draft", "modified", "broken"]


@attrs.frozen(kw_only=True)
class Loaded:
    """What a file held when it was last read; one that can't be used any more keeps its last good variant."""

    file: Path
    stamp: Stamp
    variant: Variant | None
    problem: str | None = None


@attrs.frozen(kw_only=True)
class Snapshot:
    """What is served, and what is not as it should be."""

    variants: Mapping[str, Variant] = MappingProxyType({})
    problems: tuple[str, ...] = ()


@attrs.frozen(kw_only=True)
class Listed:
    """A file with the variant that it has, served or not; a broken one has none. ``problem`` says what is wrong."""

    file: Path
    variant: Variant | None
    state: State
    problem: str | None


class Catalog:
    """The variants of some folders.

    Args:
        folders: where the files are; the first to have a version wins, so the shipped folder comes first.
        record: the file that keeps what was released; None keeps it in memory, and a command that only looks never
            writes it.

    Raises:
        StoreError: a record of released versions can't be read. A bad file or folder is a problem, and no error.
    """

    def __init__(self, folders: Sequence[Path], *, record: Path | None = None) -> None:
        self._folders = tuple(folders)
        self._record = record
        self._shipped = read_releases(SHIPPED_RELEASES)
        self._recorded = read_releases(record) if record else {}
        self._asked: dict[str, str] = {}
        self._lock = threading.Lock()  # between release, on the event loop, and refresh, in a thread
        self._loaded: dict[Path, Loaded] = {}
        self._seen: dict[Path, Stamp] = {}
        self._snapshot = Snapshot()
        self._look(is_start=True)

    @property
    def variants(self) -> Mapping[str, Variant]:
        """What is served, by version, in the order of the folders and of the names of the files."""
        return self._snapshot.variants

    @property
    def problems(self) -> tuple[str, ...]:
        """A sentence for each file that is not served as it is."""
        return self._snapshot.problems

    def release(self, variant: Variant) -> Variant:
        """Releases a variant, as a model is about to be asked with it; returns at once, and ``refresh`` records it.

        A process that is killed before that has released nothing.

        Returns:
            The variant to ask with: a draft may have changed since it was chosen, and only one content is released.
        """
        with self._lock:
            current = self._snapshot.variants.get(variant.version, variant)
            self._asked.setdefault(current.version, current.content_hash)
            return current

    def refresh(self) -> bool:
        """Takes over what has changed on the disk, and records what was released since; blocks, for one thread only.

        Returns:
            Whether the variants or the problems are others than before.
        """
        before = self._snapshot
        self._look(is_start=False)
        return self._snapshot != before

    def list_all(self) -> list[Listed]:
        """Every file that could be read, in order, with what is not served too."""
        return [self._listed(one, self._released()) for one in self._loaded.values()]

    def _listed(self, one: Loaded, released: Mapping[str, str]) -> Listed:
        variant, problem = one.variant, one.problem
        if variant is None:
            return Listed(file=one.file, variant=None, state="broken", problem=problem)
        chosen = self.variants.get(variant.version)
        if problem is None and variant is not chosen:
            problem = _why_not(variant, chosen, released.get(variant.version))
        return Listed(file=one.file, variant=variant, state=_state(variant, released), problem=problem)

    def _look(self, *, is_start: bool) -> None:
        problems = [] if is_start else list(self._keep_record())
        loaded: dict[Path, Loaded] = {}
        seen: dict[Path, Stamp] = {}
        for folder in self._folders:
            try:
                files = variant_files(folder)
            except DeclarationError as error:
                problems.append(str(error))
                files = [file for file in self._loaded if file.parent == folder]
            for file in files:
                stamp = _stamp(file)
                known = self._loaded.get(file)
                if stamp and (known is None or known.stamp != stamp) and (is_start or self._seen.get(file) == stamp):
                    known = load_file(file, stamp, known)
                if stamp:
                    seen[file] = stamp
                else:
                    problems.append(f"prompt {file}: can't be read")  # a link to nowhere, or it has just been removed
                if known:
                    loaded[file] = known
        self._seen, self._loaded = seen, loaded
        with self._lock:
            self._snapshot = choose(loaded.values(), self._released(), self._snapshot.variants, problems)

    def _released(self) -> Mapping[str, str]:
        """The content hash of each released version; what ships comes before all, what is recorded before our own."""
        return {**self._asked, **self._recorded, **self._shipped}

    def _keep_record(self) -> Iterator[str]:
        """Brings the record and what this process knows together; what is wrong with it is a problem."""
        if self._record is None:
            return
        asked = {version: content for version, content in dict(self._asked).items() if version not in self._shipped}
        try:
            if asked.keys() - self._recorded.keys():
                self._recorded = record_releases(self._record, asked)
            else:
                self._recorded |= read_releases(self._record)
        except AppError as error:
            yield str(error)


def load_file(file: Path, stamp: Stamp, known: Loaded | None) -> Loaded | None:
    """Reads a file; one that is not as it was at its ``stamp`` any more is left for the next look."""
    try:
        loaded = Loaded(file=file, stamp=stamp, variant=load_variant(file, samples=SAMPLES))
    except DeclarationError as error:
        loaded = Loaded(file=file, stamp=stamp, variant=known.variant if known else None, problem=str(error))
    return loaded if _stamp(file) == stamp else known


def choose(
    loaded: Iterable[Loaded], released: Mapping[str, str], before: Mapping[str, Variant], problems: Iterable[str] = ()
) -> Snapshot:
    """Decides what is served of what the files hold.

    Args:
        released: the content hash that each released version has for ever.
        before: what is served until now; a released version goes on as long as a file claims it.
    """
    files = list(loaded)
    found = [*problems, *(one.problem for one in files if one.problem)]
    claims: dict[str, list[Variant]] = {}
    for one in files:
        if one.variant:
            claims.setdefault(one.variant.version, []).append(one.variant)
    variants: dict[str, Variant] = {}
    for version, claiming in claims.items():
        chosen = _choose_one(claiming, released.get(version), before.get(version))
        if chosen:
            variants[version] = chosen
        found += [_why_not(variant, chosen, released.get(version)) for variant in claiming if variant is not chosen]
    return Snapshot(variants=MappingProxyType(variants), problems=tuple(found))


def _choose_one(claiming: Sequence[Variant], released: str | None, before: Variant | None) -> Variant | None:
    """The file that served until now, else the first one; of a released version only its own content will do."""
    if released is None:
        return next((variant for variant in claiming if before and variant.file == before.file), claiming[0])
    kept = before if before and before.content_hash == released else None
    return next((variant for variant in claiming if variant.content_hash == released), kept)


def _why_not(variant: Variant, chosen: Variant | None, released: str | None) -> str:
    where = f"prompt {variant.file}: version {variant.version!r}"
    if released is not None and variant.content_hash != released:
        fate = "the released content goes on until the next start" if chosen else "it is not served"
        return (
            f"{where} was released with the content {released} and can't change, but the file has "
            f"{variant.content_hash}: give it a new version; {fate}"
        )
    return f"{where} is that of {chosen.file if chosen else 'another file'} already"


def _state(variant: Variant, released: Mapping[str, str]) -> State:
    if variant.version not in released:
        return "draft"
    return "released" if released[variant.version] == variant.content_hash else "modified"


def _stamp(file: Path) -> Stamp | None:
    """What tells one content of a file from the next; None while there is no such file."""
    try:
        found = file.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino
