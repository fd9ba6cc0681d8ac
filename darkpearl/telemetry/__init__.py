"""Telemetry: log lines, metrics, traces, and the request that they belong to."""
