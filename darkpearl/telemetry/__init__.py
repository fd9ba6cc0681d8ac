"""What a process tells of itself: log lines, metrics, traces, and the request they belong to."""
