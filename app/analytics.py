"""The report on prompt variants, from the counts in the store: what GET /prompts/analytics and ``prompts report`` show.

Blocks on the disk: on an event loop call it in a thread. What the counts say is models/rewards.py's business.
"""

import datetime as dt
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar, cast

from models.codec import encode_json
from models.errors import PayloadError, StoreError
from models.rewards import RewardReport, make_report
from state.schema import has_database
from state.sqlite import SqliteReader
from state.tables import Table
from streams.handlers.feedback import PROMPT_REWARD_DAYS, REWARD_DAYS
from streams.handlers.generations import PROMPT_DAYS

RowT = TypeVar("RowT")
PAGE = 500


def read_report(path: Path, *, since: dt.date | None = None, until: dt.date | None = None) -> RewardReport:
    """Reads the counts of some days, both ends included, and makes the report.

    Args:
        path: the database; without one nothing was counted.

    Raises:
        StoreError: it can't be read, or a row does not fit its class.
    """
    if not has_database(path):
        return make_report({}, {}, reward_count=0, since=since, until=until)
    reader = SqliteReader(path)
    try:
        return _report(reader, since, until)
    except PayloadError as error:
        raise StoreError(path, f"a row of counts does not fit its class ({error.reason})") from error
    finally:
        reader.close()


def _report(reader: SqliteReader, since: dt.date | None, until: dt.date | None) -> RewardReport:
    rewards = dict(_rows(reader, REWARD_DAYS, since, until))
    return make_report(
        dict(_rows(reader, PROMPT_DAYS, since, until)),
        dict(_rows(reader, PROMPT_REWARD_DAYS, since, until)),
        reward_count=sum(day.count for day in rewards.values()),
        since=since,
        until=until,
    )


def _rows(
    reader: SqliteReader, table: Table[RowT], since: dt.date | None, until: dt.date | None
) -> Iterator[tuple[str, RowT]]:
    """The rows whose keys begin with a day of these; keys are in the order of their days."""
    after = since.isoformat() if since else ""
    if since and (first := reader.fetch_row(table.name, after)):
        yield after, cast(RowT, table.decode(encode_json(first.row)))
    while page := reader.list_rows(table.name, after=after, limit=PAGE):
        for row in page:
            if until and row.key[:10] > until.isoformat():
                return
            yield row.key, cast(RowT, table.decode(encode_json(row.row)))
        after = page[-1].key
