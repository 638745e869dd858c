"""A message of a stream, as it travels through the worker."""

import attrs


@attrs.define(eq=False)
class Message:
    """One message with its place in the stream.

    Not frozen for speed alone: one is made for every delivery.

    Args:
        stream: the stream that stores it.
        reply: where to ack; None for one that comes from the store's parked messages. A second delivery of the same
            message replaces it.
        seq: its sequence in the stream.
        consumer_seq: the delivery's place among this consumer's deliveries since its last reset.
        ts: when the stream stored it, in nanoseconds since 1970.
        num_delivered: how often the server has delivered it, as far as it remembers.
    """

    stream: str
    subject: str
    payload: bytes
    reply: str | None
    seq: int
    consumer_seq: int
    ts: int
    num_delivered: int = 1
