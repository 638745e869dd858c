"""``state get`` and ``state list``, on a store without a worker."""

import json
from pathlib import Path

import pytest
from process_kit import invoke

from models.errors import StoreError
from state.sqlite import SqliteStore
from state.store import Change

KEYS = ["a", "b", "c\nd", "../e"]


@pytest.fixture
def env(tmp_path: Path) -> dict[str, str]:
    """The settings for a store with a few rows."""
    store = SqliteStore(tmp_path / "state.db")
    for number, key in enumerate(KEYS, 1):
        puts = [("letters", key, json.dumps({"n": number}).encode())]
        store.commit([Change(durable="d", stream="S", seq=number, ts=number, puts=puts)], [], marks=[], sent=[])
    puts = [("others", "x", b"{}")]
    store.commit([Change(durable="d", stream="S", seq=9, ts=9, puts=puts)], [], marks=[], sent=[])
    store.close()
    return {"STATE_DIR": str(tmp_path)}


def test_state_get_prints_the_row_and_its_message(env: dict[str, str]) -> None:
    """A row is shown with the table, the key, and the message that wrote it last."""
    result = invoke("state", "get", "letters", "../e", **env)
    assert result.exit_code == 0
    expected = {"table": "letters", "key": "../e", "row": {"n": 4}, "stream": "S", "stream_seq": 4}
    assert json.loads(result.stdout) == expected


@pytest.mark.parametrize("arguments", [("get", "nothing", "a"), ("list", "nothing")], ids=["get", "list"])
def test_state_names_the_tables_there_are(env: dict[str, str], arguments: tuple[str, ...]) -> None:
    """A table that nobody declares and that has no rows is exit code 1, with those that there are."""
    result = invoke("state", *arguments, **env)
    assert (result.exit_code, result.stdout) == (1, "")
    tables = "letters, model_reward_days, others, prompt_days, prompt_reward_days, reward_days, rewards, user_sync"
    assert result.stderr == f"Error: no table 'nothing'; there is {tables}\n"


@pytest.mark.parametrize(("table", "key"), [("letters", "z"), ("user_sync", "a")], ids=["has rows", "declared"])
def test_state_get_says_that_there_is_no_row(env: dict[str, str], table: str, key: str) -> None:
    """A missing row is exit code 1, with table and key."""
    result = invoke("state", "get", table, key, **env)
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == f"Error: table '{table}' has no row '{key}'\n"


def test_state_get_names_a_folder_that_can_not_be_entered(tmp_path: Path) -> None:
    """A STATE_DIR into which nobody can look is one clear line, not a missing store."""
    result = invoke("state", "get", "letters", "a", STATE_DIR=str(tmp_path / ("x" * 300)))
    assert isinstance(result.exception, StoreError) and "can't be entered" in str(result.exception)


def test_state_list_counts_tables(env: dict[str, str]) -> None:
    """Without a table the tables that have rows are counted, as lines and as JSON."""
    assert invoke("state", "list", **env).stdout == "letters\t4\nothers\t1\n"
    counts = [{"table": "letters", "rows": 4}, {"table": "others", "rows": 1}]
    assert json.loads(invoke("state", "list", "--json", **env).stdout) == counts


def test_state_list_prints_rows_by_key(env: dict[str, str]) -> None:
    """The rows of a table are a line each, ordered by key, control characters escaped."""
    assert invoke("state", "list", "letters", **env).stdout == (
        '../e\t{"n":4}\tS:4\na\t{"n":1}\tS:1\nb\t{"n":2}\tS:2\nc\\nd\t{"n":3}\tS:3\n'
    )


def test_state_list_pages_with_limit_and_after(env: dict[str, str]) -> None:
    """--after goes on where a page ended."""
    pages, after = [], []
    for _ in range(2):
        rows = json.loads(invoke("state", "list", "letters", "--json", "--limit", "2", *after, **env).stdout)
        pages.append([row["key"] for row in rows])
        after = ["--after", rows[-1]["key"]]
    assert pages == [["../e", "a"], ["b", "c\nd"]]


def test_state_list_refuses_a_bad_limit(env: dict[str, str]) -> None:
    """A limit out of range is bad usage."""
    assert invoke("state", "list", "letters", "--limit", "0", **env).exit_code == 2


def test_state_list_of_a_table_without_rows_is_empty(env: dict[str, str]) -> None:
    """A declared table in which nobody has written has no rows, which is no error."""
    result = invoke("state", "list", "user_sync", "--json", **env)
    assert (result.exit_code, json.loads(result.stdout)) == (0, [])


@pytest.mark.parametrize("arguments", [("get", "letters", "a"), ("list",)], ids=["get", "list"])
def test_state_says_that_there_is_no_store(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    """Without a store the database is named, and none is made."""
    error = invoke("state", *arguments, STATE_DIR=str(tmp_path)).exception
    assert isinstance(error, StoreError) and str(tmp_path / "state.db") in str(error)
    assert list(tmp_path.iterdir()) == []
