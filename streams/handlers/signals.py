"""What users and providers do: synchronised tasks become state, feedback on tips is logged."""

import logging

from models.events import TaskSynced, TipFeedback
from models.rows import ProviderSync, UserSync
from state.tables import Table
from streams.context import Context
from streams.subjects import SubjectTable

log = logging.getLogger(__name__)


USER_SYNC = Table("user_sync", UserSync)
subjects = SubjectTable("signals", tables=[USER_SYNC])


@subjects.on("signals.task.synced")
async def task_synced(event: TaskSynced, ctx: Context) -> None:
    """Keeps the newest synchronisation of each provider; an older ``synced_at`` never replaces a newer one."""
    row = ctx.get(USER_SYNC, event.user_id) or UserSync()
    known = row.providers.get(event.provider)
    providers = row.providers
    if known is None or event.synced_at >= known.synced_at:
        newest = ProviderSync(synced_at=event.synced_at, task_count=event.task_count, cursor=event.cursor)
        providers = {**row.providers, event.provider: newest}
    updated = UserSync(
        providers=providers,
        last_event_id=event.event_id or row.last_event_id,
        stream_seq=ctx.message.seq,
        updated_at=ctx.now,
    )
    ctx.put(USER_SYNC, event.user_id, updated)


@subjects.on("signals.tip.feedback")
async def tip_feedback(event: TipFeedback, ctx: Context) -> None:
    """Logs the reaction, for observability only: the reward of a tip comes by HTTP."""
    fields = {"reaction": event.reaction, "stream": ctx.message.stream, "seq": ctx.message.seq}
    log.info("tip feedback", extra={"fields": fields})
