"""Gauges of what the database knows: of each the column that has it, and what it says."""

GAUGES = {
    "darkpearl_sagas_ready": ("ready", "Sagas that are ready to be worked on."),
    "darkpearl_sagas_oldest_ready_seconds": ("oldest_ready_seconds", "How long the oldest is."),
    "darkpearl_sagas_waiting": ("waiting", "Sagas that wait for an outside answer."),
    "darkpearl_sagas_backing_off": ("backing_off", "Sagas that wait for another try."),
    "darkpearl_sagas_held_by_pause": ("held_by_pause", "Sagas that wait for the end of a pause."),
    "darkpearl_sagas_oldest_unfinished_seconds": (
        "oldest_unfinished_seconds",
        "How long ago the oldest saga began that has not ended.",
    ),
    "darkpearl_external_steps_paused_seconds": (
        "external_steps_paused_seconds",
        "For how long calls to the world outside are still held back by a person.",
    ),
    "darkpearl_listeners_alive": ("listeners_alive", "Listeners that were seen within 15 s."),
    "darkpearl_listeners_silent": (
        "listeners_silent",
        "Listeners that were not, and did not stop as they should.",
    ),
    "darkpearl_listener_seen_seconds": ("listener_seen_seconds", "When one was last seen."),
    "darkpearl_listener_breakers_open": (
        "breakers_open",
        "Listeners whose gateway doesn't answer them.",
    ),
    "darkpearl_listeners_failing": (
        "listeners_failing",
        "Listeners alive that get nothing done: each pass fails.",
    ),
    "darkpearl_batches_running": ("batches_running", "Batches of operators that have not ended."),
    "darkpearl_gateway_events_unmatched": (
        "unmatched_gateway_events",
        "Webhooks that need a person.",
    ),
    "darkpearl_sessions_blocking": (
        "sessions_blocking",
        "Sessions that hold what listeners would change, in a transaction that stays open.",
    ),
    "darkpearl_refunds_failed": ("failed_refunds", "Refunds that came to nothing after all."),
    "darkpearl_disputes_open": ("open_disputes", "Payments that the payer's bank wants back."),
    "darkpearl_notification_queue_usage_ratio": (
        "notification_queue_usage",
        "How full PostgreSQL's queue of notifications is.",
    ),
    "darkpearl_webhooks_oldest_undelivered_seconds": (
        "oldest_undelivered_seconds",
        "How old the oldest event is that an endpoint is still to be told.",
    ),
    "darkpearl_webhooks_waiting": ("webhooks_waiting", "Webhooks that failed and are tried again."),
    "darkpearl_webhook_endpoints_failing": (
        "endpoints_failing",
        "Webhook endpoints to which nothing comes through.",
    ),
    "darkpearl_webhook_endpoints_off": (
        "endpoints_off",
        "Webhook endpoints that were switched off by themselves.",
    ),
    "darkpearl_partitions_ahead": (
        "partitions_ahead",
        "Months that have a partition of the history, from this one on, of the next three.",
    ),
    "darkpearl_events_out_of_place": (
        "events_out_of_place",
        "Events that came when there was no partition for their month.",
    ),
    "darkpearl_transaction_id_age": (
        "transaction_id_age",
        "Transactions since the oldest id that is not frozen.",
    ),
    "darkpearl_audit_age_seconds": ("audit_age_seconds", "How long ago the last audit ended."),
    "darkpearl_audit_findings": ("audit_findings", "What it found."),
    "darkpearl_reconciliation_age_seconds": (
        "reconciliation_age_seconds",
        "How long ago the books were last compared with the gateway's.",
    ),
    "darkpearl_reconciliation_differences": ("reconciliation_differences", "What differed."),
    "darkpearl_backup_age_seconds": ("backup_age_seconds", "How long ago a backup was noted."),
}
