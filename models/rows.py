"""The rows of our own tables that features and prompts read.

A row's class lies here when more than its handlers need it; the table itself, and who writes it, is declared in
streams/handlers/.
"""

import datetime as dt

import attrs


@attrs.frozen(kw_only=True)
class ProviderSync:
    """The newest synchronisation of one provider."""

    synced_at: dt.datetime
    task_count: int | None = None
    cursor: str | None = None


@attrs.frozen(kw_only=True)
class UserSync:
    """What is known of a user's synchronisations; ``updated_at`` is the stream's time of the newest event."""

    providers: dict[str, ProviderSync] = attrs.field(factory=dict)
    last_event_id: str | None = None
    stream_seq: int = 0
    updated_at: dt.datetime | None = None
