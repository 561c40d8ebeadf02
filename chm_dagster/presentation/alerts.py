"""Alert messages as people read them: plain text, HTML and Slack blocks. Nothing in a name or an error is markup."""

import re
from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from html import escape
from typing import Any

from chm_dagster.domain.alerts import Evidence, NoticeKind
from chm_dagster.domain.blindness import Note, NoteKind
from chm_dagster.domain.messages import MAX_OPENINGS, Item, Message, SameError, entries
from chm_dagster.domain.rules import COUNT_FAILURES, RuleType
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
    found = entries(message)
    if len(found) == 1 and isinstance(found[0], SameError):
        return f"{_same_error(found[0])}: {found[0].items[0].error}"
    kinds = [item.kind for item in message.items]
    parts = [f"{kinds.count(kind)} {_WORDS[kind]}" for kind in NoticeKind if kind in kinds]
    clients = list(dict.fromkeys(item.client_name for item in message.items))
    return f"{', '.join(parts)}: {listed(clients, 3)}"


def _same_error(entry: SameError) -> str:
    return f"Same error at {count(len(entry.clients), 'client')}"


def _same_error_sentence(entry: SameError) -> str:
    """How many pipelines fail anew, since when, and where else."""
    since = min(item.since for item in entry.items)
    return f"{count(len(entry.items), 'pipeline')} failing since {_at(since)}; {listed(list(entry.clients), 6)}"


def _also(item: Item) -> str:
    return f"Same error within the last 30 minutes: {listed(list(item.same_error_at), 6)}"


def sentence(item: Item) -> str:
    """What is wrong, or what has become of it, without the names."""
    since = _at(item.since)
    if item.kind is NoticeKind.TEST:
        return f"a test of the rule {item.rule_type}; nothing is wrong"
    if item.kind is NoticeKind.ENDED:
        return f"no longer watched, because {item.reason}; was open since {since}"
    if item.kind is NoticeKind.CORRECTED:
        return f"false alarm: late data rule out {_claim(item)} since {since}"
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
            begin = f"{since} or earlier" if found.at_least else since
            return f"failing since {begin}, {_counted(found, 'failure')}{' in a row' if found.count > 1 else ''}"
        case RuleType.FAILURES_IN_WINDOW:
            window = duration((item.window_minutes or 0) * 60)
            return f"{_counted(found, 'failure')} since {since}, the limit is {item.threshold} within {window}"
        case RuleType.NO_SUCCESS_IN_WINDOW:
            last = _at(found.last_success) if found.last_success else "never"
            return f"no success for more than {duration((item.window_minutes or 0) * 60)}, last success: {last}"
        case RuleType.RUNNING_TOO_LONG:
            return f"running for more than {duration((found.limit_minutes or 0) * 60)} since {since}"
        case RuleType.MISSED_RUN:
            due = _at(found.slot) if found.slot else since
            more = f", {_counted(found, 'run')} missed" if found.count > 1 else ""
            return f"no run since it was due at {due}{more}"


def _recovery(item: Item) -> str:
    until = item.until or item.since
    if item.rule_type is RuleType.MISSED_RUN and item.evidence.slot is not None:
        return f"ran at {_at(until)}, {_length(until - item.evidence.slot)} late"
    failed = ""
    if item.rule_type in COUNT_FAILURES:
        failed = f", {_counted(item.evidence, 'failed run')}"
    return f"recovered at {_at(until)} after {_at_least(item.evidence)}{_length(until - item.since)}{failed}"


def _counted(found: Evidence, noun: str) -> str:
    return f"{_at_least(found)}{count(found.count, noun)}"


def _at_least(found: Evidence) -> str:
    return "at least " if found.at_least else ""


def _at(time: datetime) -> str:
    return f"{to_the_minute(time)} UTC"


def _length(span: timedelta) -> str:
    return duration(max(span.total_seconds(), 0))


def plain(message: Message, board_url: str | None = None) -> str:
    """The message as plain text, for emails and logs, with links to the board if it is known where that is."""
    lines = [f"[{_NOTE_WORDS[note.kind]}] {note.text}" for note in message.notes]
    shown, rest = _shown(message)
    for entry in shown:
        if isinstance(entry, SameError):
            lines.append(f"[new] {_same_error(entry)}: {_same_error_sentence(entry)}")
        else:
            lines.append(f"[{_WORDS[entry.kind]}] {entry.client_name} / {entry.pipeline_name}: {sentence(entry)}")
        lines += [f"    {line}" for line in _details(entry, board_url)]
    return "\n".join([*lines, *([rest] if rest else []), "", *_remarks(message), *_commands(message), ""])


def _shown(message: Message) -> tuple[list[Item | SameError], str]:
    """The entries that a message shows, and how many notices it does not; empty if it shows all."""
    found = entries(message)
    rest = sum(len(entry.items) if isinstance(entry, SameError) else 1 for entry in found[SHOWN:])
    return found[:SHOWN], f"... and {rest:,} more" if rest else ""


def _remarks(message: Message) -> Iterator[str]:
    """What the receiver is not shown, and why."""
    if message.held_until is not None:
        yield (
            f"You got {MAX_OPENINGS} messages about new problems within an hour. Further ones wait until"
            f" {_at(message.held_until)}; chm alert list shows the problems."
        )
    if message.unannounced:
        yield (
            f"{count(message.unannounced, 'more episode')} of the last hour began and ended without a message; chm"
            " alert history shows them."
        )


def _board_link(item: Item, board_url: str | None) -> str:
    """Where the board shows the pipeline; empty if it is not known where the board is."""
    return f"{board_url.rstrip('/')}/clients/{item.client_slug}/{item.pipeline_slug}" if board_url else ""


def _details(entry: Item | SameError, board_url: str | None = None) -> Iterator[str]:
    if isinstance(entry, SameError):
        yield entry.items[0].error
        yield listed([item.pipeline_key for item in entry.items], 6)
        return
    item = entry
    if item.error and item.kind is not NoticeKind.CORRECTED:
        yield item.error
    if item.same_error_at:
        yield _also(item)
    if item.source_url:
        yield item.source_url
    if link := _board_link(item, board_url):
        yield link
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


def html(message: Message, board_url: str | None = None) -> str:
    """The message as an HTML page for emails: inline styles, no pictures, nothing loaded from elsewhere."""
    return f"{_PAGE_HEAD.format(title=escape(subject(message)))}{_html_body(message, board_url)}</body></html>\n"


def inbox_page(messages: Sequence[Message], board_url: str | None = None) -> str:
    """The messages of an inbox as one page, in the order given."""
    parts = [
        f'<h2 style="font-size:1rem;margin:2rem 0 .5rem;color:#57606a">{_at(message.created_at)}</h2>'
        f"{_html_body(message, board_url)}"
        for message in messages
    ]
    return f"{_PAGE_HEAD.format(title='CHM inbox')}<h1>CHM inbox</h1>{''.join(parts)}</body></html>\n"


def _html_body(message: Message, board_url: str | None) -> str:
    notes = "".join(_html_note(note) for note in message.notes)
    shown, left_out = _shown(message)
    rows = notes + "".join(_html_entry(entry, board_url) for entry in shown)
    rest = f"<p>{left_out}</p>" if left_out else ""
    hints = "".join(f"<div>{escape(line)}</div>" for line in [*_remarks(message), *_commands(message)])
    return f'{rows}{rest}<div style="color:#57606a;font-size:13px;margin-top:1rem">{hints}</div>'


def _html_note(note: Note) -> str:
    return (
        '<div style="border-left:4px solid #57606a;padding:.2rem 0 .2rem .8rem;margin:0 0 1rem">'
        f"<strong>CHM: {_NOTE_WORDS[note.kind]}</strong><div>{escape(note.text)}</div></div>"
    )


def _html_entry(entry: Item | SameError, board_url: str | None) -> str:
    if isinstance(entry, Item):
        return _html_item(entry, board_url)
    error, pipelines = _details(entry)
    return (
        '<div style="border-left:4px solid #cf222e;padding:.2rem 0 .2rem .8rem;margin:0 0 1rem">'
        f'<strong>{_same_error(entry)}</strong> <span style="color:#cf222e">new</span>'
        f"<div>{escape(_same_error_sentence(entry))}</div>"
        f'<pre style="white-space:pre-wrap;margin:.3rem 0">{escape(error)}</pre>'
        f'<div style="color:#57606a;font-size:13px">{escape(pipelines)}</div></div>'
    )


def _html_item(item: Item, board_url: str | None) -> str:
    colour = "#cf222e" if item.kind in (NoticeKind.OPENED, NoticeKind.REMINDER) else "#57606a"
    colour = "#1a7f37" if item.kind is NoticeKind.RECOVERED else colour
    error = f'<pre style="white-space:pre-wrap;margin:.3rem 0">{escape(item.error)}</pre>' if item.error else ""
    error += f"<div>{escape(_also(item))}</div>" if item.same_error_at else ""
    link = f'<a href="{escape(item.source_url)}">Open the run</a> · ' if item.source_url else ""
    place = _board_link(item, board_url)
    board = f'<a href="{escape(place)}">Open in CHM</a> · ' if place else ""
    return (
        f'<div style="border-left:4px solid {colour};padding:.2rem 0 .2rem .8rem;margin:0 0 1rem">'
        f"<strong>{escape(item.client_name)} / {escape(item.pipeline_name)}</strong> "
        f'<span style="color:{colour}">{_WORDS[item.kind]}</span><div>{escape(sentence(item))}</div>{error}'
        f'<div style="color:#57606a;font-size:13px">{link}{board}{escape(item.pipeline_key)} on {item.platform}, '
        f"{escape(item.environment)}, rule {item.rule_type}</div></div>"
    )


def slack(message: Message, board_url: str | None = None) -> dict[str, Any]:
    """The message for Slack: `text` for notifications, and one block for each notice."""
    blocks = [_section(f"{_NOTE_SIGN} *CHM*: {_mrkdwn(note.text)}") for note in message.notes]
    shown, rest = _shown(message)
    blocks += [_section(_slack_entry(entry, board_url)) for entry in shown]
    if rest:
        blocks.append(_section(rest))
    if hints := [*_remarks(message), *_commands(message)]:
        text = "\n".join(_mrkdwn(hint) for hint in hints)
        blocks.append({"type": "context", "elements": [{"type": "mrkdwn", "text": text}]})
    return {"text": _mrkdwn(subject(message)), "blocks": blocks}


def _section(text: str) -> dict[str, Any]:
    return {"type": "section", "text": {"type": "mrkdwn", "text": text[:_SLACK_TEXT_CHARS]}}


def _slack_entry(entry: Item | SameError, board_url: str | None) -> str:
    if isinstance(entry, SameError):
        error, pipelines = map(_mrkdwn, _details(entry))
        what = f"*{_same_error(entry)}*: {_mrkdwn(_same_error_sentence(entry))}"
        return f"{_SIGNS[NoticeKind.OPENED]} {what}\n>{error}\n{pipelines}"
    item = entry
    name = _mrkdwn(f"{item.client_name} / {item.pipeline_name}")
    places = {"Open the run": item.source_url, "Open in CHM": _board_link(item, board_url)}
    links = " · ".join(f"<{_mrkdwn(place)}|{text}>" for text, place in places.items() if place)
    link = f"\n{links}" if links else ""
    error = f"\n>{_mrkdwn(item.error)}" if item.error else ""
    error += f"\n{_mrkdwn(_also(item))}" if item.same_error_at else ""
    return f"{_SIGNS[item.kind]} *{name}*: {_mrkdwn(sentence(item))}{error}{link}"


def _mrkdwn(text: str) -> str:
    """Text as text: no mention, link or emphasis of Slack's."""
    escaped = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    # A zero-width space takes the meaning from what would be emphasis.
    return re.sub(r"([*_~`])", "\\1\u200b", escaped) if re.search(r"[*~`]", escaped) else escaped


def payload(message: Message, board_url: str | None = None) -> dict[str, Any]:
    """The message as JSON data for webhooks: times in ISO 8601, one entry for each notice."""
    if message.notes:
        notes = [{"key": note.key, "kind": str(note.kind), "text": note.text} for note in message.notes]
        data = {"subject": subject(message), "notices": notes}
        return {"type": "chm.operator", "timestamp": message.created_at.isoformat(), "data": data}
    return {
        "type": "chm.alert",
        "timestamp": message.created_at.isoformat(),
        "data": {
            "subject": subject(message),
            "notices": [_data(item, board_url) for item in message.items],
            "held_until": message.held_until.isoformat() if message.held_until else None,
            "unannounced": message.unannounced,
        },
    }


def _data(item: Item, board_url: str | None) -> dict[str, Any]:
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
        "failures_are_at_least": item.evidence.at_least,
        "error": item.error or None,
        "same_error_at": list(item.same_error_at),
        "url": item.source_url,
        "board_url": _board_link(item, board_url) or None,
        "text": sentence(item),
    }
