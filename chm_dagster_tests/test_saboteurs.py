"""Removes each guard from a copy of CHM, and asserts that a test turns red: no guard is held by a test that cannot fail.

The copy holds the package and its tests. A saboteur is a change of the source text; a change that does not apply any
more fails, so the list follows the code. docs/reliability.md names the fault class that each one belongs to.
"""

import dataclasses
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import chm_dagster

ROOT = Path(chm_dagster.__file__).parent.parent
PARTS = ("chm_dagster", "chm_dagster_tests", "migrations", "contracts")
# What waits in vain in a sabotaged copy shall not do so for a minute.
IMPATIENT = {
    "chm_dagster_tests/ingestion/scene.py": ("PATIENCE = 60.0", "PATIENCE = 8.0"),
    "chm_dagster_tests/warehouse/test_writers.py": ("seconds: float = 60)", "seconds: float = 8)"),
    "chm_dagster_tests/api/test_overload.py": ("ENDLESS = 120", "ENDLESS = 8"),
    "chm_dagster_tests/http/test_faults.py": ('b"[]," * 10_000_000', 'b"[]," * 2_500_000'),
}
SECONDS = 120
"""A sabotaged test that takes longer hangs, which proves nothing. The unharmed tests share the time of all of them."""


@dataclasses.dataclass(frozen=True)
class Saboteur:
    """A guard that is removed: `old` becomes `new` in a file of the package, and `test` turns red."""

    guard: str
    file: str
    old: str
    new: str
    test: str
    second: tuple[str, str, str] | None = None
    """The file, old and new of another guard, where two stand one behind the other."""


SABOTEURS = (
    Saboteur(
        "generated dashboards are those that the contract gives",
        "presentation/grafana.py",
        '"refresh": "1m"',
        '"refresh": "5m"',
        "dashboards/test_grafana.py::test_the_files_are_those_that_the_contract_gives",
    ),
    Saboteur(
        "an empty filter of Metabase leaves nothing out",
        "presentation/metabase.py",
        "nullif('' [[|| {{{{{self.name}}}}}]], '')",
        "'' [[|| {{{{{self.name}}}}}]]",
        "dashboards/test_metabase.py::test_every_question_shows_what_the_contract_answers",
    ),
    Saboteur(
        "a password of a role reaches the server as a hash",
        "warehouse/roles.py",
        "sql.Literal(secret)",
        "sql.Literal(password)",
        "warehouse/test_roles.py::test_a_password_reaches_the_server_as_a_hash_and_no_log_at_all",
    ),
    # Authority and location (1)
    Saboteur(
        "resources take nothing from run config",
        "defs/automation.py",
        "lambda _: value, config_schema={})",
        "lambda _: value, config_schema=dg.Permissive())",
        "defs/test_resources.py::test_a_launch_cannot_say_where_and_as_whom",
    ),
    Saboteur(
        "pruning removes CHM's own folders only",
        "ingestion/landing.py",
        " and Landing(folder).removable",
        "",
        "ingestion/test_ingest.py::test_a_folder_that_chm_did_not_make_is_never_removed",
    ),
    Saboteur(
        "queries in an address are not run",
        "ui.py",
        'return {**scope, "query_string": b""}',
        "return dict(scope)",
        "ui/test_guard.py::test_no_attack_works_on_the_guarded_one",
    ),
    Saboteur(
        "queries are posted as JSON",
        "ui.py",
        "self._refuse_site(request) or _refuse_query(request)",
        "self._refuse_site(request)",
        "ui/test_guard.py::test_no_attack_works_on_the_guarded_one",
    ),
    Saboteur(
        "pages of other sites change nothing",
        "ui.py",
        'if not same or request.headers.get("sec-fetch-site", "none") not in ("none", "same-origin"):',
        "if False:",
        "ui/test_guard.py::test_no_attack_works_on_the_guarded_one",
    ),
    Saboteur(
        "other names of this machine are refused",
        "ui.py",
        'if not self._is_ours(_host_name(f"//{host}")):',
        "if False:",
        "ui/test_guard.py::test_a_server_of_this_machine_answers_to_no_other_name",
    ),
    Saboteur(
        "without a token, other users of the machine are refused",
        "serving.py",
        'return fields[9] == "0" or fields[7] not in allowed',
        "return False",
        "api/test_another_user.py",
    ),
    # Clocks (2)
    Saboteur(
        "the watermark stays behind the newest version",
        "domain/sync.py",
        "return min([*clocks, *([max(shown)] if shown else [])]) - overlap",
        "return min(clocks) - overlap",
        "ingestion/test_watermark.py::test_records_stamped_by_a_clock_that_is_behind_both_servers_are_read",
    ),
    Saboteur(
        "the watermark stays behind our clock",
        "domain/sync.py",
        "clocks = [facts.first_request, *([facts.server_time] if facts.server_time else [])]",
        "clocks = [facts.server_time or facts.first_request]",
        "unit/test_sync_facts.py::test_of_the_three_clocks_the_earliest_counts",
    ),
    Saboteur(
        "a watermark in the future is pulled back",
        "ingestion/merge_landing.py",
        "        if future:\n",
        "        if False:\n",
        "ingestion/test_watermark.py::test_a_watermark_in_the_future_is_pulled_back_and_the_gap_is_read",
    ),
    Saboteur(
        "a clock that is hours off leaves a doubt",
        "ingestion/merge_landing.py",
        "doubt=one_doubt(doubt, other_doubt),",
        "doubt=doubt,",
        "ingestion/test_watermark.py::test_a_date_header_that_is_ahead_loses_nothing_and_is_reported",
    ),
    Saboteur(
        "an unfinished run that cannot be read leaves a doubt",
        "partners/engine/groups.py",
        "            self.unread = lookups.unread\n",
        "",
        "ingestion/test_doubt.py::test_an_unfinished_run_that_cannot_be_read_is_not_taken_for_an_overrunning_one",
    ),
    Saboteur(
        "a web page with status 404 does not prove that a run is gone",
        "partners/engine/model.py",
        "if status != self.status or (is_page and not self.page):",
        "if status != self.status:",
        "partners/test_declared_feed.py::test_a_run_is_not_gone_because_a_proxy_sends_a_page_instead_of_its_api",
    ),
    Saboteur(
        "what was read before the second failed sync does not say how a pipeline is",
        "warehouse/ledger/syncs.py",
        "CASE WHEN p.sync_failing_since < w.attempted_at THEN w.attempted_at END",
        "CAST(NULL AS timestamptz)",
        "e2e/test_troubles.py::"
        "test_within_two_syncs_each_of_five_troubles_is_named_everywhere_and_none_is_called_healthy",
    ),
    # Slow partners (3)
    Saboteur(
        "connections are read side by side",
        "ingestion/ingest.py",
        "CONNECTIONS_AT_ONCE = 256",
        "CONNECTIONS_AT_ONCE = 1",
        "ingestion/test_isolation.py::test_a_partner_that_does_not_answer_keeps_no_other_waiting",
    ),
    Saboteur(
        "a request has a deadline",
        "http/client.py",
        "asyncio.timeout(self.policy.deadline)",
        "asyncio.timeout(10 * self.policy.deadline)",
        "http/test_faults.py::test_the_deadline_covers_headers_and_body_together",
    ),
    # Database and disk during a sync (4)
    Saboteur(
        "a lost session is opened again",
        "warehouse/ledger/syncs.py",
        "                # The session may have ended long ago, without anybody noticing.\n"
        "                return self._ask(_TAKE, connection_name)",
        "                raise",
        "warehouse/test_writers.py::test_a_claim_is_taken_in_a_new_session_if_the_old_one_has_ended",
    ),
    Saboteur(
        "a full disk is one clear message",
        "ingestion/landing.py",
        "    except OSError as error:\n        raise StorageUnavailable",
        "    except ZeroDivisionError as error:\n        raise StorageUnavailable",
        "ingestion/test_isolation.py::test_a_full_disk_is_one_clear_message_and_stops_no_other_connection",
    ),
    Saboteur(
        "runs and watermark commit together",
        "warehouse/ledger/syncs.py",
        "        complete_syncs(self._connection, syncs, self._changed)",
        "        complete_syncs(self._connection, syncs, self._changed)\n        self._connection.commit()",
        "warehouse/test_merge.py::test_runs_and_watermark_commit_together_or_not_at_all",
    ),
    # Interrupted loads (5)
    Saboteur(
        "the merge looks up by the unique index",
        "warehouse/ledger/merge.py",
        '"SET LOCAL enable_sort = off; SET LOCAL enable_incremental_sort = off; SET LOCAL jit = off"',
        '"SET LOCAL jit = off"',
        "warehouse/test_merge.py::test_the_merge_looks_runs_up_by_the_unique_index_whatever_the_statistics_say",
    ),
    Saboteur(
        "the server notices that its client is dead",
        "warehouse/ledger/syncs.py",
        "client_connection_check_interval = '2s'",
        "client_connection_check_interval = '0'",
        "warehouse/test_writers.py::test_a_writer_that_is_killed_in_the_middle_of_a_merge_frees_its_claim",
    ),
    Saboteur(
        "one writer for each connection",
        "warehouse/ledger/syncs.py",
        "            if claim is not None:\n",
        "            if False:\n",
        "warehouse/test_merge.py::test_a_second_writer_of_a_connection_is_refused_and_one_of_another_is_not",
    ),
    # Hostile records (6)
    Saboteur(
        "NaN is read as null",
        "http/body.py",
        "parse_constant=lambda name: None",
        "parse_constant=float",
        "http/test_faults.py::test_odd_but_readable_json_reaches_the_mapping",
    ),
    Saboteur(
        "a page that is too large is requested in parts",
        "partners/engine/groups.py",
        "        if isinstance(error, ResponseTooLarge):\n            return self._smaller()\n",
        "",
        "partners/test_large_responses.py",
    ),
    Saboteur(
        "records that were rejected leave a doubt",
        "domain/sync.py",
        "    if rejected:\n",
        "    if False:\n",
        "ingestion/test_doubt.py::test_a_rejected_newest_record_is_unknown_until_a_sync_reads_it",
    ),
    Saboteur(
        "status words that nobody knows leave a doubt",
        "domain/sync.py",
        "if unknown := sum(unknown_statuses.values()):",
        "if unknown := 0:",
        "ingestion/test_doubt.py::test_a_status_that_is_not_known_is_neither_healthy_nor_late_nor_overrunning",
    ),
    Saboteur(
        "the watermark waits for records that were rejected",
        "ingestion/merge_landing.py",
        "            through, needs_run = held_back(through, pipeline.synced_through)\n",
        "            pass\n",
        "ingestion/test_doubt.py::test_the_watermark_waits_a_day_for_a_record_that_was_rejected",
    ),
    Saboteur(
        "a doubt lasts until a run comes where its records are not read again",
        "warehouse/ledger/syncs.py",
        '_DOUBT_STAYS = "p.doubt_needs_run AND NOT w.has_news"',
        '_DOUBT_STAYS = "false AND w.has_news"',
        "ingestion/test_doubt.py::test_records_before_the_time_that_is_read_again_leave_a_doubt_until_a_run_comes",
    ),
    # Callers without a token (7)
    Saboteur(
        "health is answered whatever others do",
        "api/admission.py",
        'UNLIMITED = frozenset({"/healthz", "/readyz"})',
        "UNLIMITED = frozenset[str]()",
        "api/test_overload.py::test_health_is_answered_whatever_bodies_others_do_not_send",
    ),
    Saboteur(
        "bodies have a deadline",
        "api/admission.py",
        "with anyio.move_on_after(BODY_SECONDS)",
        "with anyio.move_on_after(1_000)",
        "api/test_overload.py::test_a_body_that_does_not_arrive_is_not_waited_for",
    ),
    Saboteur(
        "heads have a deadline",
        "serving.py",
        "self._timer = self.loop.call_later(seconds, self._drop)",
        "self._timer = self.loop.call_later(1_000, self._drop)",
        "api/test_overload.py::test_a_connection_without_a_request_is_closed",
    ),
    # Noise (8)
    Saboteur(
        "a partner that stays dead is reported once",
        "defs/ingestion.py",
        "[o.key for o in report.failed if o.key not in red]",
        "[o.key for o in report.failed]",
        "defs/test_ingestion.py::test_a_partner_that_stays_dead_is_reported_once",
    ),
    # Stopped writers (9)
    Saboteur(
        "a stopped writer loses its claim",
        "warehouse/ledger/syncs.py",
        'ended = connection.scalar(_END_STOPPED, {"name": claim, "stopped_after": stopped_after})',
        "ended = 0",
        "warehouse/test_writers.py::test_a_writer_that_is_stopped_in_the_middle_of_a_copy_loses_its_claim_to_the_next_one",
    ),
    # Small responses, large costs (10)
    Saboteur(
        "values are counted before they are built",
        "http/body.py",
        "MAX_VALUES = 2_000_000",
        "MAX_VALUES = 10**12",
        "http/test_faults.py::test_a_small_body_that_holds_millions_of_values_is_refused_before_they_are_built",
    ),
    Saboteur(
        "compressed bodies are expanded within the cap",
        "http/body.py",
        "self._member.decompress(data, room + 1 - len(out))",
        "self._member.decompress(data)",
        "http/test_faults.py::test_a_gzip_bomb_uses_no_more_memory_than_the_cap",
    ),
    # Dead processes (11)
    Saboteur(
        "a Dagster run whose process is gone is failed",
        "defs/automation.py",
        "    if run.status is not dg.DagsterRunStatus.STARTED or is_ingesting(warehouse.engine, run.run_id):",
        "    if True:",
        "defs/test_ingestion.py::test_a_run_whose_process_is_gone_is_failed_at_once_and_one_that_ingests_is_not",
    ),
    # Secrets, files, callers (12)
    Saboteur(
        "no part of a broken database URL is shown",
        "settings.py",
        "port = None if value is None else make_url(value).port",
        "port = None",
        "unit/test_settings.py",
        ("warehouse/engine.py", "except (sa.exc.ArgumentError, ValueError):", "except ZeroDivisionError:"),
    ),
    Saboteur(
        "a secret is no connection's name",
        "partners/partners_file.py",
        "    _refuse_secrets(document)\n",
        "",
        "partners/test_connections.py::test_a_secret_in_the_place_of_a_name_is_refused_and_not_shown",
    ),
    Saboteur(
        "aliases do not blow up a file",
        "yaml_document.py",
        "if self._expanded > max(FREE_ALIAS_NODES, MAX_ALIAS_GROWTH * self._written):",
        "if False:",
        "ingestion/test_inventory_file.py::test_aliases_that_expand_the_file_to_many_times_its_size_are_refused",
    ),
    Saboteur(
        "folders of raw records are private",
        "ingestion/landing.py",
        "self.folder.mkdir(mode=0o700, exist_ok=True)",
        "self.folder.mkdir(mode=0o755, exist_ok=True)",
        "ingestion/test_landing.py",
    ),
    Saboteur(
        "a token is long",
        "settings.py",
        "MIN_TOKEN_CHARS = 16",
        "MIN_TOKEN_CHARS = 1",
        "api/test_process.py::test_unsafe_or_meaningless_settings_are_rejected",
    ),
    Saboteur(
        "pages of other ports do not call the API",
        "api/admission.py",
        "return None if visited or is_from_this_machine(headers) else problem(403)",
        "return None",
        "api/test_guard.py::test_without_a_token_a_page_from_elsewhere_is_rejected",
    ),
    Saboteur(
        "what others write is no markup on the board",
        "board/html.py",
        "autoescape=True",
        "autoescape=False",
        "board/test_pages.py::test_nothing_that_others_write_becomes_markup_or_a_link_that_runs",
    ),
    Saboteur(
        "a session opens the board's pages and nothing else",
        "api/admission.py",
        'is_reading = is_page(scope["path"]) and scope["method"] in ("GET", "HEAD")',
        "is_reading = True",
        "board/test_sessions.py::test_a_session_opens_pages_and_nothing_else",
    ),
    Saboteur(
        "pages of other sites begin no session",
        "api/pages.py",
        'return same and headers.get("sec-fetch-site", "none") in ("none", "same-origin")',
        "return True",
        "board/test_sessions.py::test_a_page_of_another_site_neither_begins_nor_ends_a_session",
    ),
    Saboteur(
        "a server whose tables are locked is not ready",
        "api/operations.py",
        "        schema.read_tables(warehouse.engine)\n",
        "        pass\n",
        "api/test_overload.py::test_the_server_is_not_ready_while_its_tables_cannot_be_read",
    ),
    # Alerts
    Saboteur(
        "alerts: a slot that is not known to be empty is not missed",
        "domain/evaluation.py",
        "if deadline > known or (",
        "if (",
        "unit/test_alert_evaluation.py::test_a_missed_run",
    ),
    Saboteur(
        "alerts: a window that is not known does not clear",
        "domain/evaluation.py",
        "until if known is not None and until <= known else None",
        "until",
        "unit/test_alert_evaluation.py::test_failures_in_a_window",
    ),
    Saboteur(
        "alerts: a run that may have ended is not too long",
        "domain/evaluation.py",
        "if known is None or since > known or lost:",
        "if lost:",
        "unit/test_alert_evaluation.py::test_running_too_long",
    ),
    Saboteur(
        "alerts: a success may be lost while nobody listened",
        "domain/evaluation.py",
        "if lost < base + condition.window and heard > base:",
        "if False:",
        "unit/test_alert_evaluation.py::test_no_success_in_a_window",
    ),
    Saboteur(
        "alerts: what is in doubt is not claimed",
        "warehouse/alerts.py",
        "if known is not None and row.doubt_since is not None:",
        "if False:",
        "alerting/test_evaluating.py::test_records_that_could_not_be_understood_accuse_nobody",
        ("warehouse/alerts.py", "p.doubt_since, :now)", ":now)"),
    ),
    Saboteur(
        "alerts: a heartbeat that may be lost is not missed",
        "warehouse/alerts.py",
        "return Coverage(now, gaps)",
        "return Coverage(now)",
        "alerting/test_evaluating.py::test_a_heartbeat_that_may_have_been_lost_while_the_api_was_down_accuses_nobody",
    ),
    Saboteur(
        "a silence of the API is kept as an outage",
        "warehouse/api_uptime.py",
        "WHEN c.heard_through < statement_timestamp() - :longest THEN (",
        "WHEN c.heard_through < statement_timestamp() - 1000 * CAST(:longest AS interval) THEN (",
        "warehouse/test_api_uptime.py::test_a_silence_is_a_gap_while_it_lasts_and_afterwards",
    ),
    Saboteur(
        "an API that starts notes that it was not up",
        "api/app.py",
        "run_sync(mark_api_up, engine)",
        "run_sync(lambda _: None, engine)",
        "warehouse/test_api_uptime.py::test_the_api_notes_that_it_is_up_as_soon_as_it_answers_and_when_it_stops",
    ),
    Saboteur(
        "alerts: unknown closes nothing",
        "domain/episodes.py",
        "doubt is Doubt.BLIND or _runs_again(",
        "_runs_again(",
        "unit/test_alert_episodes.py::test_unknown_closes_nothing",
    ),
    Saboteur(
        "alerts: episodes do not depend on the order of arrival",
        "domain/episodes.py",
        "condition=news[0], since=since, evidence=news[2]",
        "condition=news[0], evidence=news[2]",
        "unit/test_alert_episodes.py::test_the_episodes_at_the_end_do_not_depend_on_the_order_of_arrival",
    ),
    Saboteur(
        "alerts: a slot exists once when clocks are set back",
        "domain/schedule.py",
        " if slot.astimezone(UTC) > after",
        "",
        "unit/test_schedule.py::test_the_next_slot_of_a_schedule",
    ),
    Saboteur(
        "alerts: nothing new is announced in maintenance",
        "alerting/evaluating.py",
        "is_quiet = is_open(subject.maintenance, now)",
        "is_quiet = False",
        "alerting/test_maintenance.py::test_nothing_is_announced_in_maintenance_and_what_is_still_open_is_announced_then",
    ),
    Saboteur(
        "maintenance: what SQL reads follows the windows",
        "warehouse/inventory/pipelines.py",
        ".values(with_calendar(news))",
        ".values(news)",
        "warehouse/test_maintenance.py::test_a_pipeline_in_maintenance_is_paused_with_the_reason",
    ),
    Saboteur(
        "maintenance: a window lasts its minutes where clocks change",
        "domain/maintenance.py",
        'slots = slots_of(window["cron"], window.get("timezone"))',
        'slots = slots_of(window["cron"], None)',
        "unit/test_maintenance.py::test_where_clocks_change_a_window_opens_once_and_lasts_its_minutes",
    ),
    Saboteur(
        "alerts: one evaluation at a time",
        "warehouse/alerts.py",
        "pg_try_advisory_xact_lock(",
        "pg_try_advisory_xact_lock_shared(",
        "alerting/test_evaluating.py::test_only_one_process_evaluates_at_a_time",
    ),
    Saboteur(
        "alerts: slots and runs are matched one to one",
        "domain/schedule.py",
        "before <= max(floor, answered)",
        "True",
        "unit/test_schedule.py::test_slots_and_runs_are_matched_one_to_one",
    ),
    Saboteur(
        "alerts: failures of a window count however many other runs there are",
        "warehouse/alerts.py",
        "r.status = 'failed' AND r.effective_at >= p.counted",
        "false AND r.effective_at >= p.counted",
        "alerting/test_evaluating.py::test_more_failures_than_runs_that_are_looked_at_count_in_a_window",
    ),
    Saboteur(
        "alerts: a window of which not all failures were counted is unknown",
        "alerting/evaluating.py",
        "if said.state is State.OK and _is_cut(",
        "if False and _is_cut(",
        "alerting/test_evaluating.py::test_a_window_with_more_failures_than_are_counted_is_unknown",
    ),
    Saboteur(
        "alerts: a change of what is expected is no correction",
        "domain/episodes.py",
        "elif episode.expected is not None and finding.expected != episode.expected:",
        "elif False:",
        "alerting/test_evaluating.py::test_an_episode_ends_when_what_is_expected_of_the_pipeline_is_changed",
    ),
    Saboteur(
        "alerts: who heard of the beginning hears of the end",
        "alerting/evaluating.py",
        "notice.episode.receiver or rule.receiver",
        "rule.receiver",
        "alerting/test_evaluating.py::test_whoever_was_notified_hears_of_the_end_when_the_receiver_is_changed",
    ),
    Saboteur(
        "alerts: the clock of evaluation does not go back",
        "warehouse/alerts.py",
        "SELECT greatest(c.now, least(",
        "SELECT least(c.now, least(",
        "alerting/test_evaluating.py::test_a_clock_that_is_set_back_ends_nothing",
    ),
    Saboteur(
        "alerts: a message is kept until it is accepted",
        "alerting/delivering.py",
        "            after, is_own_mistake = await _attempt(",
        "            await asyncio.to_thread(self._outbox.delivered, message)\n"
        "            after, is_own_mistake = await _attempt(",
        "alerting/test_delivering.py::test_what_fails_is_tried_again_with_growing_waits_under_the_same_id",
    ),
    Saboteur(
        "alerts: a purged rule takes no line of another one away",
        "warehouse/episodes.py",
        "in message.parts().items():",
        "in [(message.items[0].rule_id, message)]:",
        "alerting/test_outbox.py::test_who_purges_a_client_takes_no_line_of_another_rule_away",
    ),
    Saboteur(
        "alerts: the end of an episode is announced when its rule is deleted",
        "warehouse/inventory/rules.py",
        "WHERE id = :id AND episodes = '[]' AND outbox = '[]'",
        "WHERE id = :id",
        "alerting/test_evaluating.py::test_the_end_of_an_episode_is_announced_when_its_rule_is_deleted",
    ),
    Saboteur(
        "alerts: nobody is flooded",
        "alerting/evaluating.py",
        "is_muted=rule.receiver in held or (",
        "is_muted=(",
        "alerting/test_evaluating.py::test_a_receiver_that_has_had_enough_gets_the_rest_in_one_message",
    ),
    Saboteur(
        "alerts: a silent channel delays no other one",
        "alerting/delivering.py",
        "timeout=LOOK_SECONDS, return_when=asyncio.FIRST_COMPLETED",
        "timeout=None",
        "alerting/test_delivering.py::test_a_silent_mail_server_delays_no_other_channel_even_later",
    ),
    Saboteur(
        "alerts: an attempt by mail has a deadline",
        "alerting/channels.py",
        "    watch.start()\n",
        "    watch.daemon = True\n",
        "alerting/test_channels.py::test_a_mail_server_that_answers_byte_by_byte_is_given_up_at_the_deadline",
    ),
    Saboteur(
        "alerts: a back-test looks when live evaluation looks",
        "domain/backtests.py",
        "math.ceil((moment - self.since) / self.every)",
        "math.floor((moment - self.since) / self.every)",
        "unit/test_backtests.py::test_live_episodes_over_a_month_are_those_of_the_back_test",
    ),
    Saboteur(
        "alerts: a back-test looks when maintenance is over",
        "domain/backtests.py",
        "looks[bisect_right(looks, begin) : bisect_left(looks, end)]",
        "looks[:0]",
        "unit/test_backtests.py::test_live_episodes_over_a_month_are_those_of_the_back_test",
    ),
    Saboteur(
        "alerts: a back-test knows the streak that began before it",
        "warehouse/backtests.py",
        "r.effective_at >= before.good",
        "r.effective_at >= :since",
        "alerting/test_backtesting.py::test_a_streak_that_began_before_the_time_in_question_is_whole",
    ),
    Saboteur(
        "alerts: while CHM was stopped no connection is called blind",
        "domain/blindness.py",
        "        running_since = now\n",
        "        pass\n",
        "alerting/test_blindness.py::test_after_a_stop_connections_have_time_to_be_read",
    ),
    Saboteur(
        "alerts: messages keep their order",
        "alerting/delivering.py",
        "if after.next_at is not None and not is_own_mistake:",
        "if False:",
        "alerting/test_delivering.py::test_after_a_failed_message_the_next_one_to_that_receiver_waits",
    ),
    Saboteur(
        "alerts: a repeated message has the same id",
        "alerting/channels.py",
        "<{message.id}@",
        "<{message.id}-{message.attempts}@",
        "alerting/test_channels.py::test_a_repeated_email_has_the_same_message_id",
    ),
    Saboteur(
        "alerts: no password without TLS",
        "alerting/channels.py",
        'if parts.scheme == "smtp":',
        "if not parts.scheme:",
        "alerting/test_channels.py::test_no_password_is_sent_in_the_clear",
    ),
    # Client reports
    Saboteur(
        "what is known in part is never 100 %",
        "domain/reports.py",
        "if not all_ or (good == all_ and not is_known):",
        "if not all_:",
        "unit/test_reports.py::test_of_a_week_that_is_known_in_part_all_well_is_unknown",
    ),
    Saboteur(
        "a report knows of outages of the API",
        "warehouse/reports.py",
        "gaps = tuple(api_gaps(self.connection, now, start))",
        "gaps = ()",
        "reporting/test_building.py::test_a_report_knows_of_a_week_what_a_back_test_knows",
    ),
    Saboteur(
        "an outage before the time in question explains what is missing since",
        "warehouse/api_uptime.py",
        "else min(since, now - _KEPT_FOR)",
        "else since",
        "reporting/test_building.py::"
        "test_of_what_an_older_outage_explains_a_report_and_a_back_test_say_what_the_live_rule_says",
    ),
    Saboteur(
        "a month is issued in a run of its own partition",
        "defs/reports.py",
        "job = named(JOBS[period.kind], prefix)",
        "job = named(JOBS[PeriodKind.WEEK], prefix)",
        "defs/test_reports.py::test_a_month_that_is_due_is_issued_and_sent_in_a_run_of_its_own_partition",
    ),
    Saboteur(
        "a rate is rounded down",
        "presentation/report/content.py",
        "tenths = math.floor(rate * 1000 + 1e-6)",
        "tenths = round(rate * 1000)",
        "presentation/test_report_formats.py::test_a_rate_is_never_rounded_up",
    ),
    Saboteur(
        "a name is no formula",
        "presentation/report/tables.py",
        "if _FORMULA.match(value) else value",
        "if False else value",
        "presentation/test_report_formats.py::test_names_are_text_in_csv",
    ),
    Saboteur(
        "a name is no markup",
        "presentation/report/page.py",
        "autoescape=True",
        "autoescape=False",
        "presentation/test_report_formats.py::test_names_are_text_in_html",
    ),
    Saboteur(
        "reports are issued behind the gates",
        "defs/reports.py",
        "dg.AssetSelection.checks(*gates, deliverable)",
        "dg.AssetSelection.checks(deliverable)",
        "defs/test_reports.py::test_a_report_is_not_issued_past_a_gate",
    ),
    Saboteur(
        "an email that was accepted is not sent again",
        "reporting.py",
        "next_at=None, sent_at=clock()",
        "next_at=clock(), sent_at=clock()",
        "reporting/test_sending.py::test_it_is_sent_once",
    ),
    Saboteur(
        "an email that is sent again has the same id",
        "reporting.py",
        """        after, error = _attempt(mailer, built, mail, clock)
""",
        """        again = new_mail(client.id, str(period), built.report.revision, f"{mail.receiver} ", clock())
        after, error = _attempt(mailer, built, again, clock)
""",
        "reporting/test_sending.py::test_a_mail_server_that_fails_is_tried_again_with_the_same_id",
    ),
)


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """CHM and its tests, to be sabotaged."""
    folder = tmp_path_factory.mktemp("copy")
    for part in PARTS:
        shutil.copytree(ROOT / part, folder / part, ignore=shutil.ignore_patterns("__pycache__"))
    for path in ROOT.iterdir():
        if path.name not in PARTS and not path.name.startswith("."):
            (folder / path.name).symlink_to(path)
    for name, (old, new) in IMPATIENT.items():
        _replace(folder / name, old, new)
    return folder


def _replace(path: Path, old: str, new: str) -> str:
    text = path.read_text(encoding="utf-8")
    assert text.count(old) >= 1, f"{path.name} does not hold {old!r} any more"
    path.write_text(text.replace(old, new), encoding="utf-8")
    return text


def _run(copy: Path, *tests: str) -> tuple[int, str]:
    """The exit code and the output of pytest in the copy: 0 all green, 1 some red, more if it could not run."""
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-x",
            "--tb=line",
            "-p",
            "no:xdist",
            *(f"chm_dagster_tests/{t}" for t in tests),
        ],
        cwd=copy,
        env={**os.environ, "PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=SECONDS * len(tests),
    )
    return done.returncode, done.stdout


@pytest.mark.parametrize("saboteur", SABOTEURS, ids=lambda saboteur: saboteur.guard)
def test_the_guard_and_its_test_are_where_the_list_says(saboteur: Saboteur) -> None:
    """Quick, so that a change that moves a guard is noticed at once and not by the slow tests alone."""
    changes = [(saboteur.file, saboteur.old), *([saboteur.second[:2]] if saboteur.second else [])]
    for file, old in changes:
        assert old in (ROOT / "chm_dagster" / file).read_text(encoding="utf-8")
    file, _, test = saboteur.test.partition("::")
    tests = (ROOT / "chm_dagster_tests" / file).read_text(encoding="utf-8")
    assert not test or f"def {test.partition('[')[0]}(" in tests, "a saboteur without a test's name is for a whole file"


@pytest.mark.slow
@pytest.mark.parametrize("saboteur", SABOTEURS, ids=lambda saboteur: saboteur.guard)
def test_without_the_guard_its_test_turns_red(saboteur: Saboteur, copy: Path) -> None:
    changes = [(saboteur.file, saboteur.old, saboteur.new), *([saboteur.second] if saboteur.second else [])]
    before = [
        (copy / "chm_dagster" / file, _replace(copy / "chm_dagster" / file, old, new)) for file, old, new in changes
    ]
    try:
        code, output = _run(copy, saboteur.test)
    finally:
        for path, text in reversed(before):
            path.write_text(text, encoding="utf-8")
    assert code == 1, output
    # Red because of what it asserts, not because the copy cannot be imported.
    assert " failed" in output or "FAILED" in output, output


@pytest.mark.slow
def test_in_an_unharmed_copy_the_same_tests_are_green(copy: Path) -> None:
    code, output = _run(copy, *sorted({saboteur.test for saboteur in SABOTEURS}))
    assert code == 0, output
