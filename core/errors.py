"""The one error tree.

Every error a caller can see is a `MoltbotError`: a stable `code`, one sentence that says what, why and what to
do, and the facts a program needs (`retryable`, `retry_after`, `worker`, `reason`, `verdict`). Which HTTP status an
error becomes is decided in `gateway/problems.py`; which exit status, in `cli/`.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

Verdict = Literal["not_started", "maybe_ran", "done"]

__all__ = [
    "BaseDirectoryError",
    "BootError",
    "Cancelled",
    "DatabaseDamaged",
    "FrameError",
    "HandlerError",
    "InvalidRequest",
    "IsolationUnavailable",
    "MoltbotError",
    "NotFound",
    "NotRunning",
    "PortInUse",
    "ProtocolError",
    "QueueFull",
    "ReplyTooLarge",
    "RequestTimeout",
    "SettingsError",
    "StartupError",
    "StorageFull",
    "TooManyUsers",
    "Unavailable",
    "UnknownType",
    "UserForgetting",
    "UserQueueFull",
    "WorkerDied",
    "WorkerQuarantined",
    "WorkersMissing",
    "clean_text",
    "error_of_handler",
    "quote",
]


def quote(value: object, limit: int = 80) -> str:
    """Show an untrusted value inside a sentence: escaped, in quotes, at most `limit` characters long."""
    try:
        text = repr(value[: limit + 1]) if isinstance(value, str) else ascii(value)
    except Exception:  # for example an int of more digits than Python shows
        text = f"<{type(value).__name__}>"
    return text if len(text) <= limit + 2 else text[:limit] + "…"


def clean_text(text: str, limit: int = 2000) -> str:
    """Text from a stranger for a log or an error: at most `limit` characters, none that could forge a line or play tricks."""
    return "".join([char if char.isprintable() else ascii(char)[1:-1] for char in text[:limit]])


class MoltbotError(Exception):
    """The root of all errors; `code` never changes meaning, the message is for people.

    retryable: the same request may succeed later. retry_after: seconds until then (`usual_wait` if nobody knows better). worker: whose fault or
    place it was. reason: an `ExitReason` or another fixed word. verdict: what is known of the request's execution.
    """

    code: ClassVar[str] = "internal"
    usual_wait: ClassVar[float | None] = None
    retryable: bool = False
    verdict: Verdict = "not_started"

    def __init__(
        self,
        message: str,
        *,
        retryable: bool | None = None,
        retry_after: float | None = None,
        worker: str | None = None,
        reason: str | None = None,
        verdict: Verdict | None = None,
        details: Any = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        if retryable is not None:
            self.retryable = retryable
        if verdict is not None:
            self.verdict = verdict
        usual = self.usual_wait if self.retryable else None  # who is not to try again has nothing to wait for
        self.retry_after = retry_after if retry_after is not None else usual
        self.worker = worker
        self.reason = reason
        self.details = details

    def facts(self) -> dict[str, Any]:
        """The error as a JSON object: `code`, `detail`, `retryable`, `verdict` and what else is known."""
        known = {
            "worker": self.worker,
            "reason": self.reason,
            "retryAfter": self.retry_after,
            "details": self.details,
        }
        return {
            "code": self.code,
            "detail": self.message,
            "retryable": self.retryable,
            "verdict": self.verdict,
            **{key: value for key, value in known.items() if value is not None},
        }


class InvalidRequest(MoltbotError):
    """The request itself is wrong; sending it again cannot help."""

    code = "invalid_request"


class UnknownType(InvalidRequest):
    """No handler of the worker answers this request type."""

    code = "unknown_type"


class NotFound(MoltbotError):
    """A worker or a user that is asked about does not exist."""

    code = "not_found"


class QueueFull(MoltbotError):
    """The worker's queue, or all its lanes together, is at its bound."""

    code = "worker_queue_full"
    usual_wait = 1.0
    retryable = True


class UserQueueFull(QueueFull):
    """This user's own lane is at its bound; others are not affected."""

    code = "user_queue_full"


class Unavailable(MoltbotError):
    """The worker or the pool cannot take the request now."""

    code = "unavailable"
    usual_wait = 5.0
    retryable = True


class NotRunning(Unavailable):
    """The router was not started, or is stopping."""

    code = "not_running"


class WorkerQuarantined(Unavailable):
    """The user's worker kept dying and rests until its next probation start."""

    code = "worker_quarantined"


class UserForgetting(Unavailable):
    """The user is being forgotten; once that is done, the next request begins anew."""

    code = "user_being_forgotten"
    usual_wait = 1.0


class TooManyUsers(MoltbotError):
    """A new user would be one more than `max_users`; those who have a worker are served."""

    code = "too_many_users"


class RequestTimeout(MoltbotError):
    """The request's time ran out: in the queue (`not_started`) or after dispatch (`maybe_ran`)."""

    code = "timeout"


class WorkerDied(MoltbotError):
    """The worker died while the request was on it."""

    code = "worker_died"
    verdict: Verdict = "maybe_ran"


class StorageFull(MoltbotError):
    """The directories of the user's worker are beyond `max_disk` or `max_inodes`."""

    code = "storage_full"
    usual_wait = 30.0
    retryable = True


class Cancelled(MoltbotError):
    """The request was cancelled by its caller."""

    code = "cancelled"
    verdict: Verdict = "maybe_ran"


class HandlerError(MoltbotError):
    """The handler raised, or returned something that cannot be carried."""

    code = "handler_error"
    verdict: Verdict = "done"


class ReplyTooLarge(MoltbotError):
    """A collected reply grew over the frame limit; stream it instead."""

    code = "reply_too_large"
    verdict: Verdict = "maybe_ran"


class ProtocolError(MoltbotError):
    """The other side broke the frame protocol; its channel is closed."""

    code = "protocol_error"


class FrameError(ProtocolError):
    """Bytes that are not a frame, or a frame over the limit."""

    code = "frame_error"


class StartupError(MoltbotError):
    """Something that keeps the gateway from starting; the message says how to mend it."""

    code = "startup_error"


class SettingsError(StartupError):
    """An unknown or impossible setting."""

    code = "invalid_setting"


class BaseDirectoryError(StartupError):
    """The base directory cannot be used: a file, a link, not ours, not writable, full or in use."""

    code = "base_directory"


class DatabaseDamaged(StartupError):
    """`moltbot.db` cannot be read."""

    code = "database_damaged"


class WorkersMissing(StartupError):
    """Users are pinned to workers that this pool does not have."""

    code = "workers_missing"


class BootError(StartupError):
    """A worker could not boot: its handler does not load, or it never became ready."""

    code = "boot_failed"


class IsolationUnavailable(StartupError):
    """No isolation level that is allowed works on this machine."""

    code = "isolation_unavailable"


class PortInUse(StartupError):
    """The gateway's port is taken."""

    code = "port_in_use"


_FROM_HANDLERS = {kind.code: kind for kind in (UnknownType, InvalidRequest, Cancelled, ReplyTooLarge)}


def error_of_handler(code: str) -> type[MoltbotError]:
    """The class for the code of a worker's `error` frame; what is not known there is the handler's failure."""
    return _FROM_HANDLERS.get(code, HandlerError)
