"""``handlers``: what runs, on which subject, under which policy."""

import importlib
import json
from pathlib import Path

import pytest
from process_kit import invoke

from app.cli.handlers import describe_tables
from app.settings import load_settings
from models.errors import PluginError
from streams import Context, SubjectTable, Tick


def test_handlers_are_a_line_each() -> None:
    """Each handler is shown with subject, stream, durable, event type and key."""
    result = invoke("handlers", NATS_DURABLE_PREFIX="mine")
    assert result.exit_code == 0
    assert result.stdout.splitlines() == [
        "feedback.tip_rewarded\tfeedback.tip.rewarded\tFEEDBACK\tmine-feedback\tTipRewarded\treward_key\tfeedback",
        "generations.generate_decided\tdecisions.generate\tDECISIONS\tmine-generations\tGenerateDecided\trequest_id"
        "\tgenerations",
        "signals.task_synced\tsignals.task.synced\tSIGNALS\tmine-signals\tTaskSynced\tuser_id\tsignals",
        "signals.tip_feedback\tsignals.tip.feedback\tSIGNALS\tmine-signals\tTipFeedback\tuser_id\tsignals",
    ]


def test_handlers_in_json_have_fields_tables_and_policy() -> None:
    """JSON has the event's fields, the tables, and the policy as it counts, NATS_MAX_DELIVER included."""
    found = json.loads(invoke("handlers", "--json", NATS_MAX_DELIVER="9").stdout)
    first = found[2]
    assert first["handler"] == "signals.task_synced" and first["tables"] == ["user_sync"]
    assert first["fields"] == ["user_id", "provider", "synced_at", "task_count", "cursor", "event_id"]
    assert first["policy"]["max_deliver"] == 9
    assert first["policy"]["backoff_s"] == [1, 5, 30]


def test_handlers_name_the_plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each handler is shown with its plugin; one that is left out is a warning on stderr, and the rest is there."""
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "left_out_for_tests.py").write_text("raise ValueError\n")
    importlib.invalidate_caches()
    result = invoke("handlers", "--json", PLUGINS="left_out_for_tests", PLUGIN_ERRORS="skip")
    assert [row["plugin"] for row in json.loads(result.stdout)] == ["feedback", "generations", "signals", "signals"]
    assert result.stderr.startswith("warning: left out: plugin 'left_out_for_tests'")
    stopped = invoke("handlers", PLUGINS="left_out_for_tests").exception
    assert isinstance(stopped, PluginError) and stopped.where[1] == 1


def test_handlers_need_no_nats() -> None:
    """The list is of the program, not of a server."""
    assert invoke("handlers", NATS_URL="").exit_code == 0


def test_handlers_of_timers_have_their_schedule_and_their_lane() -> None:
    """A timer is shown with its subject, the name that is its lane, and when it fires."""
    table = SubjectTable("nights")

    async def nightly(tick: Tick, ctx: Context) -> None: ...

    async def often(tick: Tick, ctx: Context) -> None: ...

    table.cron("0 7 * * *", tz="Europe/Berlin")(nightly)
    table.timer(every_s=60)(often)
    found = describe_tables([table], load_settings({}))
    assert [(row["subject"], row["stream"], row["key"], row["timer"]) for row in found] == [
        ("timers.nights.nightly", "TIMERS", "name", "0 7 * * * (Europe/Berlin)"),
        ("timers.nights.often", "TIMERS", "name", "every 60 s"),
    ]
