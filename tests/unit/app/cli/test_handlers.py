"""``handlers``: what runs, on which subject, under which policy."""

import json

from process_kit import invoke


def test_handlers_are_a_line_each() -> None:
    """Each handler is shown with subject, stream, durable, event type and key."""
    result = invoke("handlers", NATS_DURABLE_PREFIX="mine")
    assert result.exit_code == 0
    assert result.stdout.splitlines() == [
        "signals.task_synced\tsignals.task.synced\tSIGNALS\tmine-signals\tTaskSynced\tuser_id",
        "signals.tip_feedback\tsignals.tip.feedback\tSIGNALS\tmine-signals\tTipFeedback\tuser_id",
        "feedback.tip_rewarded\tfeedback.tip.rewarded\tFEEDBACK\tmine-feedback\tTipRewarded\tuser_id",
    ]


def test_handlers_in_json_have_fields_tables_and_policy() -> None:
    """JSON has the event's fields, the tables, and the policy as it counts, NATS_MAX_DELIVER included."""
    found = json.loads(invoke("handlers", "--json", NATS_MAX_DELIVER="9").stdout)
    first = found[0]
    assert first["handler"] == "signals.task_synced" and first["tables"] == ["user_sync"]
    assert first["fields"] == ["user_id", "provider", "synced_at", "task_count", "cursor", "event_id"]
    assert first["policy"]["max_deliver"] == 9
    assert first["policy"]["backoff_s"] == [1, 5, 30]


def test_handlers_need_no_nats() -> None:
    """The list is of the program, not of a server."""
    assert invoke("handlers", NATS_URL="").exit_code == 0
