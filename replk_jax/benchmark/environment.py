"""What figures depend on besides the program: device, processor, threads, versions, date."""

import datetime
import os
import platform
from pathlib import Path
from typing import Any

import jax

from replk_jax.benchmark import torch_peers


def describe_environment() -> dict[str, Any]:
    """A dictionary fit for JSON."""
    device = jax.devices()[0]
    return {
        "platform": device.platform,
        "device": device.device_kind,
        "processor": _processor(),
        "processors": os.cpu_count(),
        "python": platform.python_version(),
        "jax": jax.__version__,
        "jaxlib": jax.lib.__version__,
        "torch": torch_peers.describe(),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def format_environment(environment: dict[str, Any]) -> str:
    """The dictionary as text of a few lines."""
    lines = [
        "{device} ({platform}), {processor}, {processors} processors, {date}",
        "Python {python}, jax {jax}, jaxlib {jaxlib}, {torch}",
    ]
    return "\n".join(lines).format(**environment)


def _processor() -> str:
    """The model's name where Linux tells it, or else what Python knows."""
    information = Path("/proc/cpuinfo")
    if information.is_file():
        for line in information.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
