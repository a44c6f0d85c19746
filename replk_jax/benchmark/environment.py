"""The environment of a measurement: device, driver, processor, versions, date and commit."""

import datetime
import importlib.metadata
import os
import platform
import re
import subprocess
from pathlib import Path
from typing import Any

import jax

from replk_jax.benchmark import torch_peers


def describe_environment() -> dict[str, Any]:
    """The environment as a dictionary for JSON."""
    device = jax.devices()[0]
    return {
        "platform": device.platform,
        "device": device.device_kind,
        "driver": _driver() if device.platform == "gpu" else None,
        "processor": _processor(),
        "processors": os.cpu_count(),
        "python": platform.python_version(),
        "jax": jax.__version__,
        "jaxlib": importlib.metadata.version("jaxlib"),
        "torch": torch_peers.describe(),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": _commit(),
    }


def format_environment(environment: dict[str, Any]) -> str:
    """The result of `describe_environment` as a few lines of text."""
    lines = [
        "{device} ({platform}), {processor}, {processors} processors, {date}",
        "Python {python}, jax {jax}, jaxlib {jaxlib}, {torch}",
    ]
    known = [name for name in ("driver", "commit") if environment[name]]
    lines[1] += "".join(f", {name} {{{name}}}" for name in known)
    return "\n".join(lines).format(**environment)


def _processor() -> str:
    """The model name of the processor on Linux; elsewhere the name that Python reports."""
    information = Path("/proc/cpuinfo")
    if information.is_file():
        for line in information.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _driver() -> str | None:
    """The version of the NVIDIA driver; None if there is none."""
    try:
        text = Path("/proc/driver/nvidia/version").read_text()
    except OSError:
        return None
    version = re.search(r"\d+\.\d+(\.\d+)?", text)
    return version and version[0]


def _commit() -> str | None:
    """The commit of this checkout, with the suffix "-dirty" if files have changed.

    The environment variable REPLK_JAX_COMMIT takes precedence, for a copy without history. None if
    it is unknown, as in an installed package.
    """
    if given := os.environ.get("REPLK_JAX_COMMIT"):
        return given

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(Path(__file__).parent), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", Path(__file__).name)
        return git("describe", "--always", "--dirty", "--abbrev=12", "--exclude=*")
    except (OSError, subprocess.CalledProcessError):
        return None
