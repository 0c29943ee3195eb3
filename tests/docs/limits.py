"""The one table of limits, from the constants and the settings' defaults as they stand in the code."""

from __future__ import annotations

from moltbot.cli.settings import Settings
from moltbot.core import framing, messages, session, user_key
from moltbot.core.units import format_duration, format_size
from moltbot.gateway import (
    access_log,
    auth,
    bodies,
    credentials,
    heads,
    idempotency,
    listening,
    outcomes,
    rates,
)
from moltbot.gateway.routes import tokens
from moltbot.router import directory, exporting, flight, placement, ring, users_list
from moltbot.sandbox import disk, health, logs, policies, restart
from moltbot.sandbox.isolation import root, view
from moltbot.sandbox.setting_kinds import MAX_WORKERS, show_value
from moltbot.worker import calls, record, state

Row = tuple[str, str, str, str]
HEADERS = ["what", "limit", "setting", "beyond it"]


def rows() -> list[list[str]]:
    """Every limit: what is bounded, by how much, by which setting if by one, and what happens beyond it."""
    groups = (*_port(), *_credentials(), *_requests(), *_users(), *_workers(), *_logs())
    return [list(row) for row in groups]


def _port() -> list[Row]:
    return [
        _set(
            "connections at once",
            "max_connections",
            "the one idle for longest is closed; if none is, the new one",
            f"by the open files allowed, at most {listening.MAX_CONNECTIONS}",
        ),
        _fixed(
            "a connection that sends no request, or a part of its head", _s(listening.IDLE_SECONDS), "closed"
        ),
        _fixed("method, target and query of a request", format_size(heads.MAX_TARGET_BYTES), "414"),
        _fixed("one header", f"{heads.MAX_HEADER_BYTES} bytes", "431"),
        _fixed(
            "headers of a request",
            f"{heads.MAX_HEADERS}; {format_size(heads.MAX_HEAD_BYTES)} in all",
            "431",
        ),
        _set("a body", "max_body", "413"),
        _fixed(
            "bodies of all requests under way",
            f"{format_size(bodies.MAX_BODIES_BYTES)}, those up to {format_size(bodies.UNCOUNTED_BYTES)} not counted",
            "503 `busy`",
        ),
        _fixed("the form by which a browser signs in", format_size(bodies.MAX_FORM_BYTES), "413"),
        _set("time for a body to come", "body_timeout", "408, and the connection is closed"),
        _set(
            "time in which a reader takes nothing of an answer",
            "send_timeout",
            "the connection is closed, at the latest after twice as long; the request is cancelled",
        ),
    ]


def _credentials() -> list[Row]:
    failures = auth.FAILURES
    return [
        _fixed(
            "requests without a valid credential, per address (IPv6: per /64)",
            str(failures),
            "429 instead of 401",
        ),
        _set("requests with one credential", "rate_limit_credential", "429 with `Retry-After`"),
        _set("requests for one user", "rate_limit_user", "429 with `Retry-After`"),
        _fixed(
            "users, credentials or addresses that are counted at once",
            str(rates.MAX_BUCKETS),
            "the one used least lately starts anew",
        ),
        _fixed("tokens, links and sessions", str(credentials.MAX_CREDENTIALS), "503 until some are revoked"),
        _fixed("a token's label", f"{credentials.MAX_LABEL} characters", "400"),
        _fixed("a token's life, if it has an end", _s(tokens.MAX_SECONDS), "400"),
        _fixed("a one-time link's life", _s(credentials.LINK_SECONDS), "403"),
        _fixed("a browser's session", _s(credentials.SESSION_SECONDS), "401"),
        _fixed("an `Idempotency-Key`", f"{idempotency.MAX_KEY_LENGTH} characters", "400"),
        _fixed(
            "answers kept for keys",
            f"{_s(outcomes.MAX_AGE)}; per owner {outcomes.MAX_PER_OWNER} and {format_size(outcomes.MAX_BYTES_PER_OWNER)}; "
            f"in all {outcomes.MAX_IN_ALL} and {format_size(outcomes.MAX_BYTES_IN_ALL)}",
            "the oldest finished ones go; 503 if none is finished",
        ),
        _fixed(
            "one answer that is kept",
            format_size(outcomes.MAX_OUTCOME_BYTES),
            "409 `outcome_not_kept` when it is asked for again",
        ),
    ]


def _requests() -> list[Row]:
    return [
        _fixed("a user id", f"{user_key.MAX_USER_ID_BYTES} bytes of UTF-8, not empty", "400"),
        _fixed("the directory name made from it", f"{user_key.MAX_KEY_BYTES} bytes", "cut, with a hash"),
        _fixed("a request's type", f"{messages.MAX_TYPE_LENGTH} printable characters", "400"),
        _fixed("a request's id", f"{messages.MAX_REQUEST_ID_LENGTH} printable characters", "400"),
        _fixed(
            "one frame, and a reply that is collected",
            format_size(framing.MAX_FRAME_BYTES),
            "400, or 500 `reply_too_large`",
        ),
        _fixed(
            "streamed ahead of a reader, per request (credit)",
            format_size(session.CREDIT_BYTES),
            "the handler waits",
        ),
        _fixed(
            "emitted ahead of a reader by a coroutine", format_size(calls.MAX_EMIT_AHEAD), "the request fails"
        ),
        _set("requests of one user that wait", "max_queue_per_user", "429"),
        _set("requests of one user that run at once", "user_concurrency", "they wait"),
        _set("requests of one worker that wait", "max_queue_per_worker", "503"),
        _set("requests that run on one worker", "max_concurrent", "they wait"),
        _set("time in the queue", "queue_timeout", "504, not started"),
        _set("time from dispatch", "request_timeout", "504, cancelled"),
        _fixed(
            "time for a cancelled handler to end",
            _s(policies.CANCEL_GRACE),
            "its worker drains and is killed",
        ),
        _fixed("runs again of an idempotent request whose worker died", str(flight.MAX_RERUNS), "502"),
        _fixed("the text of a handler's error", f"{calls.MAX_ERROR_TEXT} characters", "cut"),
    ]


def _users() -> list[Row]:
    return [
        _set("users", "max_users", "503 `too_many_users` for a new one", "unlimited"),
        _fixed("new users that wait for the disk", str(directory.MAX_PENDING), "503"),
        _set(
            "time without a request until a user leaves the worker's memory",
            "user_idle_timeout",
            "loaded again by the next request",
        ),
        _fixed("`ctx.state`, packed", format_size(state.MAX_STATE_BYTES), "the request fails"),
        _fixed("one entry of `ctx.session`", format_size(record.MAX_ENTRY_BYTES), "the request fails"),
        _fixed("users on one page of the list", str(users_list.MAX_LIMIT), "400"),
        _fixed("exports at once", f"{exporting.MAX_EXPORTS}; one per user", "503"),
        _fixed(
            "an export's wait for what runs; its copying",
            f"{_s(exporting.EXPORT_SECONDS)}; {_s(exporting.COPY_SECONDS)}",
            "503",
        ),
        _fixed("time for an export to be read", _s(exporting.OPEN_SECONDS), "cut off"),
        _set("bytes of an export", "max_disk", "507"),
    ]


def _workers() -> list[Row]:
    return [
        _fixed("workers of a pool", str(MAX_WORKERS), "refused at start"),
        _fixed("points per worker on the ring", str(ring.VNODES), ""),
        _fixed(
            "users on one worker at their first placement",
            f"{placement.BOUND} times the even share",
            "the next worker on the ring",
        ),
        _set(
            "memory of a worker, with all its processes",
            "max_memory",
            "killed and restarted; drained before at `soft_memory`",
        ),
        _set("processes and threads", "max_processes", "refused by the kernel, or killed and restarted"),
        _set("open files per process", "max_open_files", "refused by the kernel"),
        _set("disk space of its directories", "max_disk", "507, then restarted without its cache"),
        _set("files and folders in them", "max_inodes", "507, then restarted without its cache"),
        _fixed(
            "`/tmp` at isolation level `bubblewrap`, in memory",
            format_size(root.TMP_SIZE),
            "refused by the kernel",
        ),
        _fixed("`/dev/shm` at that level, in memory", format_size(root.SHM_SIZE), "refused by the kernel"),
        _fixed("nested folders that are measured", str(disk.MAX_DEPTH), "507"),
        _fixed(
            "files in one granted path, which are looked through for sockets",
            str(view._MOST_ENTRIES),
            "refused at start",
        ),
        _set("requests until it is restarted", "max_requests", "drained and restarted"),
        _set("time to become ready", "boot_timeout", "killed and restarted"),
        _set("time for running requests when it stops", "drain_timeout", "killed"),
        _fixed("time for a drained worker to stop", _s(policies.STOP_GRACE), "killed"),
        _set("event-loop lag with work in flight", "max_loop_lag", "killed and restarted"),
        _fixed("heartbeats missing", str(health.MISSED_BEATS), "killed and restarted"),
        _set("restarts within `restart_window`", "max_restart_attempts", "quarantined"),
        _fixed("delay before a restart", _s(restart.MAX_DELAY), ""),
        _fixed(
            "rest of a quarantined worker: first, at most",
            f"{_s(restart.PROBATION)}, {_s(restart.MAX_PROBATION)}",
            "",
        ),
    ]


def _logs() -> list[Row]:
    return [
        _fixed(
            "one log file; older ones kept",
            f"{format_size(logs.MAX_LOG_BYTES)}; {logs.LOG_BACKUPS}",
            "the oldest is deleted",
        ),
        _fixed(
            "output of a worker that is logged, per stream",
            f"{format_size(logs.BUDGET_BYTES_PER_SECOND)} a second",
            "dropped and counted",
        ),
        _fixed(
            "entries of the access log that wait to be written",
            str(access_log.MAX_WAITING),
            "dropped and counted",
        ),
    ]


def _fixed(what: str, limit: str, beyond: str) -> Row:
    return what, limit, "", beyond


def _set(what: str, setting: str, beyond: str, unset: str = "unlimited") -> Row:
    field = Settings.model_fields[setting]
    shown = unset if field.default is None else show_value(field.default, field)
    return what, shown, f"`{setting}`", beyond


def _s(seconds: float) -> str:
    return format_duration(seconds * 1000)
