"""What a failed answer means, and whether and when to ask again: pure decisions.

An answer is asked for again only when nothing of one was seen and the failure says that it may pass: no connection, a
connection that ended before an answer, 429, 502, 503, 504. The pause is drawn between nothing and a limit that doubles
("full jitter", https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/), and is never shorter than
what the gateway asks for. A pause that does not fit before the deadline is no pause: the failure stands.
"""

import datetime as dt
import email.utils
import math
import random
import re
from collections.abc import Mapping

import attrs
import msgspec

from models.codec import between
from models.errors import GatewayError

# LiteLLM passes a provider's header on under the second name.
RETRY_AFTER_HEADERS = ("Retry-After", "llm_provider-retry-after")

_WORD = re.compile(r"[a-z_]{1,40}")
_DIGITS = re.compile(r"[0-9]{1,20}(\.[0-9]{1,20})?")


@attrs.frozen(kw_only=True)
class RetryConfig:
    """How often to ask again; the limit of the first pause is ``base_s``, that of any pause ``limit_s``."""

    max_retries: int = attrs.field(default=2, validator=between(0, 10))
    base_s: float = attrs.field(default=0.2, validator=between(0, 60))
    limit_s: float = attrs.field(default=5.0, validator=between(0, 60))


def retry_delay(
    error: GatewayError, config: RetryConfig, *, retries: int, left_s: float, rng: random.Random
) -> float | None:
    """Seconds to wait before asking again, or None when the failure stands.

    Args:
        retries: how often it was asked again already.
        left_s: seconds until the deadline.
    """
    if not error.may_retry or retries >= config.max_retries:
        return None
    jitter_s = rng.uniform(0, min(config.limit_s, config.base_s * 2**retries))
    delay_s = max(jitter_s, error.retry_after_s or 0)
    return delay_s if delay_s < left_s else None


def refusal_of(status: int, *, retry_after_s: float | None = None, word: str = "") -> GatewayError:
    """The error for a status that is not 200; ``word`` is the gateway's name for what is wrong."""
    detail = f"status {status}, {word}" if word else f"status {status}"
    if status == 429:
        return GatewayError("rate_limited", detail, may_retry=True, retry_after_s=retry_after_s)
    if status == 408:
        return GatewayError("timeout", detail)
    if status >= 500:
        return GatewayError("unavailable", detail, may_retry=status in (502, 503, 504), retry_after_s=retry_after_s)
    return GatewayError("refused", detail)


def retry_after(headers: Mapping[str, str], now: dt.datetime) -> float | None:
    """Seconds that the headers ask to wait, given as a number or as a date (RFC 9110, section 10.2.3)."""
    for name in RETRY_AFTER_HEADERS:
        text = headers.get(name, "").strip()
        if _DIGITS.fullmatch(text):
            return float(text)
        if text:
            return _seconds_until(text, now)
    return None


def error_word(body: bytes) -> str:
    """The ``type`` of an error in OpenAI's form, if it is one plain word; messages may quote keys and prompts."""
    try:
        error = msgspec.json.decode(body).get("error")
        word = error.get("type")
        return word if _WORD.fullmatch(word) else ""
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, AttributeError, TypeError):
        return ""


def _seconds_until(text: str, now: dt.datetime) -> float | None:
    try:
        instant = email.utils.parsedate_to_datetime(text)
        left_s = (instant - now).total_seconds()
    except (ValueError, TypeError, OverflowError):  # no date, or one without a zone
        return None
    return max(0.0, left_s) if math.isfinite(left_s) else None
