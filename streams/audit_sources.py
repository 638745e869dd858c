"""The dead letters that a stream of the server holds, for the audit."""

from models.errors import ApiError
from streams.broker import STREAM_NOT_FOUND, Broker
from streams.topology import DEAD_LETTER_PREFIX, DEAD_LETTERS


async def stored_letters(broker: Broker, stream: str) -> set[str]:
    """The subjects of the dead letters that are stored for messages of a stream; the server tells them in pages."""
    found: set[str] = set()
    while True:
        body = {"subjects_filter": f"{DEAD_LETTER_PREFIX}{stream}.>", "offset": len(found)}
        try:
            info = await broker.api(f"STREAM.INFO.{DEAD_LETTERS}", body)
        except ApiError as error:
            if error.code == STREAM_NOT_FOUND:
                return found
            raise
        page = (info["state"].get("subjects") or {}).keys() - found
        found |= page
        if not page or len(found) >= info.get("total", 0):
            return found
