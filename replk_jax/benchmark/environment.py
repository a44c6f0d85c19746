"""What figures depend on: device, driver, processor, threads, versions, date and commit."""

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
    """A dictionary fit for JSON."""
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
    """The dictionary as text of a few lines."""
    lines = [
        "{device} ({platform}), {processor}, {processors} processors, {date}",
        "Python {python}, jax {jax}, jaxlib {jaxlib}, {torch}",
    ]
    known = [name for name in ("driver", "commit") if environment[name]]
    lines[1] += "".join(f", {name} {{{name}}}" for name in known)
    return "\n".join(lines).format(**environment)


def _processor() -> str:
    """The model's name where Linux reports it, or else what Python knows."""
    information = Path("/proc/cpuinfo")
    if information.is_file():
        for line in information.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _driver() -> str | None:
    """The version of NVIDIA's driver; None where there is none, or of another maker."""
    try:
        text = Path("/proc/driver/nvidia/version").read_text()
    except OSError:
        return None
    version = re.search(r"\d+\.\d+(\.\d+)?", text)
    return version and version[0]


def _commit() -> str | None:
    """Of the checkout that this file is of, with "-dirty" behind it where files are changed.

    For a copy without history, the variable REPLK_JAX_COMMIT gives it. None where nothing is
    known, as of a package that was installed.
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
