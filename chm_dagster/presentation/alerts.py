"""Alert messages as people read them: plain text, HTML and Slack blocks. Nothing in a name or an error is markup."""

import re
from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from html import escape
from typing import Any

from chm_dagster.domain.alerts import NoticeKind
from chm_dagster.domain.blindness import Note, NoteKind
from chm_dagster.domain.messages import Item, Message
from chm_dagster.domain.rules import RuleType
from chm_dagster.presentation.columns import count, duration, listed, to_the_minute

SHOWN = 10
"""Lines of a message; the rest is counted."""
_WORDS = {
    NoticeKind.OPENED: "new",
    NoticeKind.REMINDER: "still open",
    NoticeKind.RECOVERED: "recovered",
    NoticeKind.CORRECTED: "corrected",
    NoticeKind.ENDED: "no longer watched",
    NoticeKind.TEST: "test",
}
_SIGNS = {
    NoticeKind.OPENED: "\N{LARGE RED CIRCLE}",
    NoticeKind.REMINDER: "\N{LARGE RED CIRCLE}",
    NoticeKind.RECOVERED: "\N{LARGE GREEN CIRCLE}",
    NoticeKind.CORRECTED: "\N{MEDIUM WHITE CIRCLE}",
    NoticeKind.ENDED: "\N{MEDIUM WHITE CIRCLE}",
    NoticeKind.TEST: "\N{MEDIUM WHITE CIRCLE}",
}
_NOTE_WORDS = {
    NoteKind.BLIND: "not read",
    NoteKind.SEES_AGAIN: "read again",
    NoteKind.WAS_STOPPED: "was stopped",
}
_NOTE_SIGN = "\N{MEDIUM WHITE CIRCLE}"
_SLACK_TEXT_CHARS = 2_900
"""A section of Slack holds 3,000 characters."""


def subject(message: Message) -> str:
    """What it is about, on one line: of a single notice its sentence, of several how many of which kind and client."""
    if message.notes:
        return f"CHM: {message.notes[0].text}" if len(message.notes) == 1 else f"CHM: {len(message.notes)} notices"
    if len(message.items) == 1:
        [item] = message.items
        return f"{item.client_name} / {item.pipeline_name}: {sentence(item)}"
    kinds = [item.kind for item in message.items]
    parts = [f"{kinds.count(kind)} {_WORDS[kind]}" for kind in NoticeKind if kind in kinds]
    clients = list(dict.fromkeys(item.client_name for item in message.items))
    return f"{', '.join(parts)}: {listed(clients, 3)}"


def sentence(item: Item) -> str:
    """What is wrong, or what has become of it, without the names."""
    since = _at(item.since)
    if item.kind is NoticeKind.TEST:
        return f"a test of the rule {item.rule_type}; nothing is wrong"
    if item.kind is NoticeKind.ENDED:
        return f"no longer watched, because {item.reason}; was open since {since}"
    if item.kind is NoticeKind.CORRECTED:
        return f"was not so: late data show that {_claim(item)} since {since} is not true"
    if item.kind is NoticeKind.RECOVERED:
        return _recovery(item)
    still = "still " if item.kind is NoticeKind.REMINDER else ""
    return still + _state(item)


def _claim(item: Item) -> str:
    return {
        RuleType.MISSED_RUN: "a missed run",
        RuleType.RUNNING_TOO_LONG: "a run that takes too long",
        RuleType.NO_SUCCESS_IN_WINDOW: "no success",
    }.get(item.rule_type, "a failure")


def _state(item: Item) -> str:
    since, found = _at(item.since), item.evidence
    match item.rule_type:
        case RuleType.ON_FAILURE | RuleType.CONSECUTIVE_FAILURES:
            return f"failing since {since}, {count(found.count, 'failure')} in a row"
        case RuleType.FAILURES_IN_WINDOW:
            window = duration((item.window_minutes or 0) * 60)
            return f"{count(found.count, 'failure')} since {since}, the limit is {item.threshold} within {window}"
        case RuleType.NO_SUCCESS_IN_WINDOW:
            last = _at(found.last_success) if found.last_success else "never"
            return f"no success for more than {duration((item.window_minutes or 0) * 60)}, last success: {last}"
        case RuleType.RUNNING_TOO_LONG:
            return f"running for more than {duration((found.limit_minutes or 0) * 60)} since {since}"
        case RuleType.MISSED_RUN:
            due = _at(found.slot) if found.slot else since
            more = f", {found.count} runs missed" if found.count > 1 else ""
            return f"no run since it was due at {due}{more}"


def _recovery(item: Item) -> str:
    until = item.until or item.since
    if item.rule_type is RuleType.MISSED_RUN and item.evidence.slot is not None:
        return f"has run at {_at(until)}, {_length(until - item.evidence.slot)} late"
    failed = ""
    if item.rule_type in (RuleType.ON_FAILURE, RuleType.CONSECUTIVE_FAILURES, RuleType.FAILURES_IN_WINDOW):
        failed = f", {count(item.evidence.count, 'failed run')}"
    return f"recovered at {_at(until)} after {_length(until - item.since)}{failed}"


def _at(time: datetime) -> str:
    return f"{to_the_minute(time)} UTC"


def _length(span: timedelta) -> str:
    return duration(max(span.total_seconds(), 0))


def plain(message: Message) -> str:
    """The message as plain text, for emails and logs."""
    lines = [f"[{_NOTE_WORDS[note.kind]}] {note.text}" for note in message.notes]
    for item in message.items[:SHOWN]:
        lines.append(f"[{_WORDS[item.kind]}] {item.client_name} / {item.pipeline_name}: {sentence(item)}")
        lines += [f"    {line}" for line in _details(item)]
    if len(message.items) > SHOWN:
        lines.append(f"... and {len(message.items) - SHOWN:,} more")
    return "\n".join([*lines, "", *_commands(message), ""])


def _details(item: Item) -> Iterator[str]:
    if item.error and item.kind is not NoticeKind.CORRECTED:
        yield item.error
    if item.source_url:
        yield item.source_url
    yield f"{item.pipeline_key} on {item.platform}, {item.environment}, rule {item.rule_type} {str(item.rule_id)[-12:]}"


def _commands(message: Message) -> Iterator[str]:
    """How to go on, for whoever is woken."""
    open_ = [item for item in message.items if item.kind in (NoticeKind.OPENED, NoticeKind.REMINDER)]
    if open_:
        yield f"To stop reminders: chm alert ack {str(open_[0].episode_id)[-12:]}"
        yield f"To mute the rule: chm rule update {str(open_[0].rule_id)[-12:]} --muted-until 4h"


_PAGE_HEAD = (
    '<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
    '<title>{title}</title><body style="font:16px/1.5 system-ui,sans-serif;color:#1b1f24;background:#fff;'
    'max-width:42rem;margin:1rem auto;padding:0 1rem">'
)


def html(message: Message) -> str:
    """The message as an HTML page for emails: inline styles, no pictures, nothing loaded from elsewhere."""
    return f"{_PAGE_HEAD.format(title=escape(subject(message)))}{_html_body(message)}</body></html>\n"


def inbox_page(messages: Sequence[Message]) -> str:
    """The messages of an inbox as one page, in the order given."""
    parts = [
        f'<h2 style="font-size:1rem;margin:2rem 0 .5rem;color:#57606a">{_at(message.created_at)}</h2>'
        f"{_html_body(message)}"
        for message in messages
    ]
    return f"{_PAGE_HEAD.format(title='CHM inbox')}<h1>CHM inbox</h1>{''.join(parts)}</body></html>\n"


def _html_body(message: Message) -> str:
    notes = "".join(_html_note(note) for note in message.notes)
    rows = notes + "".join(_html_item(item) for item in message.items[:SHOWN])
    rest = f"<p>... and {len(message.items) - SHOWN:,} more</p>" if len(message.items) > SHOWN else ""
    hints = "".join(f"<div>{escape(line)}</div>" for line in _commands(message))
    return f'{rows}{rest}<div style="color:#57606a;font-size:13px;margin-top:1rem">{hints}</div>'


def _html_note(note: Note) -> str:
    return (
        '<div style="border-left:4px solid #57606a;padding:.2rem 0 .2rem .8rem;margin:0 0 1rem">'
        f"<strong>CHM: {_NOTE_WORDS[note.kind]}</strong><div>{escape(note.text)}</div></div>"
    )


def _html_item(item: Item) -> str:
    colour = "#cf222e" if item.kind in (NoticeKind.OPENED, NoticeKind.REMINDER) else "#57606a"
    colour = "#1a7f37" if item.kind is NoticeKind.RECOVERED else colour
    error = f'<pre style="white-space:pre-wrap;margin:.3rem 0">{escape(item.error)}</pre>' if item.error else ""
    link = f'<a href="{escape(item.source_url)}">Open the run</a> · ' if item.source_url else ""
    return (
        f'<div style="border-left:4px solid {colour};padding:.2rem 0 .2rem .8rem;margin:0 0 1rem">'
        f"<strong>{escape(item.client_name)} / {escape(item.pipeline_name)}</strong> "
        f'<span style="color:{colour}">{_WORDS[item.kind]}</span><div>{escape(sentence(item))}</div>{error}'
        f'<div style="color:#57606a;font-size:13px">{link}{escape(item.pipeline_key)} on {item.platform}, '
        f"{escape(item.environment)}, rule {item.rule_type}</div></div>"
    )


def slack(message: Message) -> dict[str, Any]:
    """The message for Slack: `text` for notifications, and one block for each notice."""
    blocks = [_section(f"{_NOTE_SIGN} *CHM*: {_mrkdwn(note.text)}") for note in message.notes]
    blocks += [_section(_slack_item(item)) for item in message.items[:SHOWN]]
    if len(message.items) > SHOWN:
        blocks.append(_section(f"... and {len(message.items) - SHOWN:,} more"))
    if hints := list(_commands(message)):
        text = "\n".join(_mrkdwn(hint) for hint in hints)
        blocks.append({"type": "context", "elements": [{"type": "mrkdwn", "text": text}]})
    return {"text": _mrkdwn(subject(message)), "blocks": blocks}


def _section(text: str) -> dict[str, Any]:
    return {"type": "section", "text": {"type": "mrkdwn", "text": text[:_SLACK_TEXT_CHARS]}}


def _slack_item(item: Item) -> str:
    name = _mrkdwn(f"{item.client_name} / {item.pipeline_name}")
    link = f"\n<{_mrkdwn(item.source_url)}|Open the run>" if item.source_url else ""
    error = f"\n>{_mrkdwn(item.error)}" if item.error else ""
    return f"{_SIGNS[item.kind]} *{name}*: {_mrkdwn(sentence(item))}{error}{link}"


def _mrkdwn(text: str) -> str:
    """Text as text: no mention, link or emphasis of Slack's."""
    escaped = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    # A zero-width space takes the meaning from what would be emphasis.
    return re.sub(r"([*_~`])", "\\1\u200b", escaped) if re.search(r"[*~`]", escaped) else escaped


def payload(message: Message) -> dict[str, Any]:
    """The message as JSON data for webhooks: times in ISO 8601, one entry for each notice."""
    if message.notes:
        notes = [{"key": note.key, "kind": str(note.kind), "text": note.text} for note in message.notes]
        data = {"subject": subject(message), "notices": notes}
        return {"type": "chm.operator", "timestamp": message.created_at.isoformat(), "data": data}
    return {
        "type": "chm.alert",
        "timestamp": message.created_at.isoformat(),
        "data": {"subject": subject(message), "notices": [_data(item) for item in message.items]},
    }


def _data(item: Item) -> dict[str, Any]:
    return {
        "key": item.key,
        "kind": str(item.kind),
        "episode_id": str(item.episode_id),
        "rule_id": str(item.rule_id),
        "rule_type": str(item.rule_type),
        "client": item.client_slug,
        "client_name": item.client_name,
        "pipeline": item.pipeline_key,
        "pipeline_name": item.pipeline_name,
        "platform": str(item.platform),
        "environment": item.environment,
        "since": item.since.isoformat(),
        "until": item.until.isoformat() if item.until else None,
        "failures": item.evidence.count,
        "error": item.error or None,
        "url": item.source_url,
        "text": sentence(item),
    }
