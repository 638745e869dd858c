"""The catalog: what a running process serves while files come, change and go."""

import threading
from pathlib import Path

import pytest

from models.errors import StoreError
from prompts.catalog import Catalog, Listed, load_file
from prompts.registry import SHIPPED
from prompts.releases import read_releases

FILE = """\
---
version: {version}
purpose: A test.
variables: {{}}
limits:
  max_chars: 100
---
Greet.
--- user
{text}
"""


class Folder:
    """A folder of variants beside a record."""

    def __init__(self, path: Path) -> None:
        self.path = path / "variants"
        self.path.mkdir()
        self.record = path / "prompts.json"

    def write(self, version: str, text: str = "Hello.", name: str | None = None) -> Path:
        """Writes a variant."""
        file = self.path / (name or f"{version}.j2")
        file.write_text(FILE.format(version=version, text=text))
        return file

    def open(self) -> Catalog:
        """A catalog, as of a process that starts now."""
        return Catalog([SHIPPED, self.path], record=self.record)


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    """An empty folder, and no record."""
    return Folder(tmp_path)


def settle(catalog: Catalog) -> None:
    """Looks as often as a changed file needs to be taken."""
    for _ in range(2):
        catalog.refresh()


def text_of(catalog: Catalog, version: str) -> str:
    """What a version says now."""
    return catalog.variants[version].render({}).user


def test_catalog_has_what_is_there_at_the_start(folder: Folder) -> None:
    """Shipped variants come first, then the others."""
    folder.write("v4")
    assert list(folder.open().variants) == ["v1", "v2", "v3", "v4"]


def test_catalog_sees_a_new_file_once_it_is_still(folder: Folder) -> None:
    """At the first look it may still be written; at the second one with the same content it is served."""
    catalog = folder.open()
    folder.write("v4")
    assert (catalog.refresh(), "v4" in catalog.variants) == (False, False)
    folder.write("v4", "Longer by now.")
    assert (catalog.refresh(), "v4" in catalog.variants) == (False, False)
    assert (catalog.refresh(), text_of(catalog, "v4")) == (True, "Longer by now.")
    assert catalog.refresh() is False


def test_file_that_changes_while_it_is_read_is_left(folder: Folder) -> None:
    """What was read may be a half of each, so what is known of it stays."""
    file = folder.write("v4")
    found = file.stat()
    stamp = (found.st_mtime_ns, found.st_size, found.st_ino)
    known = load_file(file, stamp, None)
    assert known and known.variant and known.variant.version == "v4"
    folder.write("v4", "Changed.")
    assert load_file(file, stamp, None) is None and load_file(file, stamp, known) is known


def test_catalog_replaces_its_snapshot_whole(folder: Folder) -> None:
    """Whoever took the variants before a change goes on with them; nobody can change them."""
    catalog = folder.open()
    before = catalog.variants
    folder.write("v4")
    settle(catalog)
    assert "v4" not in before and "v4" in catalog.variants
    with pytest.raises(TypeError):
        before["v5"] = before["v1"]  # type: ignore[index]


def test_catalog_follows_a_draft(folder: Folder) -> None:
    """A version that no model was asked with may change, and may go."""
    file = folder.write("v4")
    catalog = folder.open()
    folder.write("v4", "Changed.")
    settle(catalog)
    assert (text_of(catalog, "v4"), catalog.problems) == ("Changed.", ())
    file.unlink()
    assert catalog.refresh() and "v4" not in catalog.variants
    assert not folder.record.exists()


def test_catalog_keeps_the_old_one_when_a_file_turns_bad(folder: Folder) -> None:
    """What was good goes on, the reason is told, and a mended file ends both."""
    file = folder.write("v4")
    catalog = folder.open()
    file.write_text("no variant")
    settle(catalog)
    assert text_of(catalog, "v4") == "Hello."
    assert catalog.problems == (f"prompt {file}:1: expected a line '---', and YAML up to a second one",)
    folder.write("v4", "Mended.")
    settle(catalog)
    assert (text_of(catalog, "v4"), catalog.problems) == ("Mended.", ())


def test_catalog_starts_beside_a_bad_file(folder: Folder) -> None:
    """The others are served, and the reason is told."""
    (folder.path / "bad.j2").write_text("no variant")
    catalog = folder.open()
    assert list(catalog.variants) == ["v1", "v2", "v3"] and "bad.j2:1: expected a line" in catalog.problems[0]


def test_catalog_refuses_variables_that_no_request_has(folder: Folder) -> None:
    """A slip in a name is told when the file is read, and not by a request that fails."""
    file = folder.write("v4")
    file.write_text(file.read_text().replace("variables: {}", "variables: {tip_knid: a slip}"))
    catalog = folder.open()
    assert "v4" not in catalog.variants
    assert catalog.problems == (f"prompt {file}:4: variables.tip_knid: unknown key, did you mean tip_kind?",)


def test_catalog_keeps_the_old_one_when_a_sample_fails(folder: Folder) -> None:
    """A text that only some contexts can fill is a bad file: told with line, variable and sample, and not served."""
    file = folder.write("v4")
    catalog = folder.open()
    declared = FILE.replace("{{}}", "{{tip_kind: the topic}}")
    file.write_text(declared.format(version="v4", text="About {{ tip_kind | upper }}, {{ tip_kind.strip() }}."))
    settle(catalog)
    assert catalog.variants["v4"].render({"tip_kind": None}).user == "Hello."
    problem = f"prompt {file}:10: variable 'tip_kind': 'None' has no attribute 'strip', with the sample 'empty'"
    assert catalog.problems == folder.open().problems == (problem,)
    assert "v4" not in folder.open().variants


def test_released_version_is_served_as_it_was(folder: Folder) -> None:
    """A file that changes after a model was asked is refused by name and both hashes; the old text goes on."""
    file = folder.write("v4")
    catalog = folder.open()
    old = catalog.release(catalog.variants["v4"])
    folder.write("v4", "Changed.")
    settle(catalog)
    assert catalog.variants["v4"] is old and read_releases(folder.record) == {"v4": old.content_hash}
    new = next(one.variant for one in catalog.list_all() if one.state == "modified" and one.variant)
    assert catalog.problems == (
        f"prompt {file}: version 'v4' was released with the content {old.content_hash} and can't change, but the file "
        f"has {new.content_hash}: give it a new version; the released content goes on until the next start",
    )


def test_release_is_of_what_is_served_now(folder: Folder) -> None:
    """A draft that was chosen before its file changed is asked with as it is by then; one that is gone, as it was."""
    file = folder.write("v4")
    catalog = folder.open()
    chosen = catalog.variants["v4"]
    folder.write("v4", "Changed.")
    settle(catalog)
    current = catalog.release(chosen)
    assert current.render({}).user == "Changed."
    file.unlink()
    catalog.refresh()
    assert catalog.release(current) is current and read_releases(folder.record) == {"v4": current.content_hash}


def test_released_version_that_changed_is_unknown_to_a_new_process(folder: Folder) -> None:
    """Nobody has the content any more, so there is no such version until the file has it again."""
    folder.write("v4")
    first = folder.open()
    first.release(first.variants["v4"])
    first.refresh()
    folder.write("v4", "Changed.")
    second = folder.open()
    assert "v4" not in second.variants and second.problems[0].endswith("give it a new version; it is not served")
    folder.write("v4")
    settle(second)
    assert (text_of(second, "v4"), second.problems) == ("Hello.", ())


def test_released_version_goes_on_when_its_file_turns_bad_and_goes_with_it(folder: Folder) -> None:
    """A bad file after a changed one still claims the version; a removed one takes it along."""
    file = folder.write("v4")
    catalog = folder.open()
    catalog.release(catalog.variants["v4"])
    for text in (FILE.format(version="v4", text="Changed."), "no variant"):
        file.write_text(text)
        settle(catalog)
        assert text_of(catalog, "v4") == "Hello."
    file.unlink()
    catalog.refresh()
    assert "v4" not in catalog.variants


def test_release_of_another_process_wins(folder: Folder) -> None:
    """Two processes that released different contents end with the one that was recorded first."""
    folder.write("v4")
    first = folder.open()
    folder.write("v4", "Changed.")
    second = folder.open()
    first.release(first.variants["v4"])
    second.release(second.variants["v4"])
    first.refresh()
    second.refresh()
    assert "v4" not in second.variants
    assert read_releases(folder.record) == {"v4": first.variants["v4"].content_hash}
    folder.write("v4")
    settle(second)
    assert text_of(second, "v4") == "Hello."


def test_release_of_another_process_is_seen(folder: Folder) -> None:
    """What one process has released can't change in any other."""
    folder.write("v4")
    first, second = folder.open(), folder.open()
    first.release(first.variants["v4"])
    first.refresh()
    folder.write("v4", "Changed.")
    settle(second)
    assert text_of(second, "v4") == "Hello." and len(second.problems) == 1


def test_shipped_version_can_not_be_replaced(folder: Folder) -> None:
    """A file of the operator with a version that ships is refused, in every process."""
    folder.write("v1")
    catalog = folder.open()
    assert catalog.variants["v1"].file == SHIPPED / "v1.j2" and "version 'v1' was released" in catalog.problems[0]


def test_shipped_versions_are_not_recorded_again(folder: Folder) -> None:
    """Their record ships with them."""
    catalog = folder.open()
    catalog.release(catalog.variants["v1"])
    catalog.refresh()
    assert not folder.record.exists()


def test_version_of_two_files_is_that_of_the_first(folder: Folder) -> None:
    """A second file can't take a version over, even if its name comes first."""
    file = folder.write("v4")
    catalog = folder.open()
    other = folder.write("v4", "Other.", name="a.j2")
    settle(catalog)
    assert text_of(catalog, "v4") == "Hello."
    assert catalog.problems == (f"prompt {other}: version 'v4' is that of {file} already",)
    catalog.release(catalog.variants["v4"])
    file.unlink()
    settle(catalog)
    assert text_of(catalog, "v4") == "Hello." and "was released" in catalog.problems[0]


def test_catalog_goes_on_without_its_folder(folder: Folder) -> None:
    """A folder that is gone for a while takes nothing along, and is a problem until it is back."""
    folder.write("v4")
    catalog = folder.open()
    moved = folder.path.rename(folder.path.with_name("moved"))
    catalog.refresh()
    assert "v4" in catalog.variants and "expected a folder with .j2 files" in catalog.problems[0]
    moved.rename(folder.path)
    catalog.refresh()
    assert ("v4" in catalog.variants, catalog.problems) == (True, ())


def test_catalog_ignores_files_of_editors_and_names_a_broken_link(folder: Folder) -> None:
    """Hidden files are nobody's variants; a link to nowhere is told."""
    (folder.path / ".#v4.j2").symlink_to("nowhere")
    assert folder.open().problems == ()
    (folder.path / "v4.j2").symlink_to("nowhere")
    assert folder.open().problems == (f"prompt {folder.path}/v4.j2: can't be read",)


def test_catalog_keeps_the_old_one_when_its_link_breaks(folder: Folder) -> None:
    """What was good goes on, and is told, for the next start will not have it."""
    folder.write("v4", name="v4.txt")
    link = folder.path / "v4.j2"
    link.symlink_to("v4.txt")
    catalog = folder.open()
    (folder.path / "v4.txt").unlink()
    catalog.refresh()
    assert ("v4" in catalog.variants, catalog.problems) == (True, (f"prompt {link}: can't be read",))


def test_catalog_tells_that_it_can_not_record(folder: Folder) -> None:
    """A release that can't be written holds in this process; at the next start a bad record stops it."""
    folder.write("v4")
    catalog = folder.open()
    catalog.release(catalog.variants["v4"])
    folder.record.write_text("{")
    settle(catalog)
    assert "no record of prompts" in catalog.problems[0] and catalog.list_all()[-1].state == "released"
    with pytest.raises(StoreError, match="no record of prompts"):
        folder.open()


def test_catalog_lists_every_file_with_its_state(folder: Folder) -> None:
    """Released, a draft, changed since the release, or broken, with the reason; a record is not needed."""
    folder.write("v4")
    folder.write("v4", name="v4b.j2")
    folder.write("v1", name="mine.j2")
    (folder.path / "bad.j2").write_text("no variant")
    listed = folder.open().list_all()
    states = {one.file.name: (one.variant and one.variant.version, one.state) for one in listed[3:]}
    assert [one.state for one in listed[:3]] == ["released"] * 3
    assert states == {
        "bad.j2": (None, "broken"),
        "mine.j2": ("v1", "modified"),
        "v4.j2": ("v4", "draft"),
        "v4b.j2": ("v4", "draft"),
    }
    assert [one.problem for one in listed if one.problem] == [*folder.open().problems]


def test_catalog_lists_a_release_that_nobody_records(folder: Folder) -> None:
    """What this process has released is known without a file of records; a bad file keeps its last good variant."""
    file = folder.write("v4")
    alone = Catalog([folder.path])
    variant = alone.release(alone.variants["v4"])
    alone.refresh()
    assert alone.list_all() == [Listed(file=file, variant=variant, state="released", problem=None)]
    file.write_text("no variant")
    settle(alone)
    assert alone.list_all() == [Listed(file=file, variant=variant, state="released", problem=alone.problems[0])]


def test_catalog_never_serves_a_half(folder: Folder) -> None:
    """While a file is replaced again and again, every look at the variants finds a whole one or the one before."""
    folder.write("v4", "0 end")
    catalog = folder.open()
    found = {text_of(catalog, "v4")}
    done = threading.Event()

    def watch() -> None:
        while not done.is_set():
            found.add(text_of(catalog, "v4"))

    watcher = threading.Thread(target=watch)
    watcher.start()
    for n in range(1, 30):
        text = FILE.format(version="v4", text=f"{'x' * n}{n} end")
        for part in (text[: len(text) // 2], text):
            (folder.path / "v4.j2").write_text(part)
            catalog.refresh()
        catalog.refresh()
    done.set()
    watcher.join()
    found.add(text_of(catalog, "v4"))
    assert len(found) > 1 and all(text.endswith(" end") for text in found)
