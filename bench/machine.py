"""The machine that the figures were measured on."""

import os
import platform
import re
from pathlib import Path
from typing import Any

import psutil
import psycopg

SETTINGS = (
    "fsync",
    "synchronous_commit",
    "full_page_writes",
    "shared_buffers",
    "huge_pages_status",
    "max_wal_size",
    "checkpoint_timeout",
    "wal_sync_method",
    "track_commit_timestamp",
    "jit",
)


def machine(url: str) -> dict[str, Any]:
    """CPU, memory, kernel, server and those of its settings that matter."""
    with psycopg.connect(url) as connection:
        facts = {"server": connection.execute("show server_version").fetchone()[0]}
        for name in SETTINGS:
            facts[name] = connection.execute(f"show {name}".encode()).fetchone()[0]
    model = re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return {
        "bench": "machine",
        "cpu": model[1] if model else platform.processor(),
        "cores": os.cpu_count(),
        "memory_gb": round(psutil.virtual_memory().total / 2**30),
        "load": round(os.getloadavg()[0], 1),
        "kernel": platform.release(),
        "python": platform.python_version(),
        **facts,
    }
