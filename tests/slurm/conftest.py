"""The two-node Slurm of the tests: booted once per session, always stopped. Skips, saying why, where it cannot run."""

import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("cluster.sh")


def free_ports(count: int) -> int:
    """The first of `count` adjacent free TCP ports (slurmctld takes one, each slurmd another)."""
    for first in range(21000 + os.getpid() % 5000 * 4, 60000, count):
        try:
            for port in range(first, first + count):
                with socket.socket() as probe:
                    probe.bind(("127.0.0.1", port))
        except OSError:
            continue
        return first
    raise RuntimeError("no free ports")


@pytest.fixture(scope="session")
def slurm() -> Iterator[dict[str, str]]:
    """The environment variables that reach the cluster."""
    missing = [tool for tool in ("slurmctld", "slurmd", "sbatch", "munged") if shutil.which(tool, path=_path()) is None]
    if missing:
        pytest.skip(
            f"no Slurm here ({', '.join(missing)} not found): apt-get install slurmctld slurmd slurm-client munge"
        )
    if os.geteuid() != 0:
        pytest.skip("the test cluster needs root: slurmd starts tasks for users")
    folder = Path(tempfile.mkdtemp(prefix="frisket-slurm-"))  # short: munge's socket path has a limit
    env = os.environ | {"PATH": _path()}
    try:
        subprocess.run(["bash", SCRIPT, "start", folder, str(free_ports(4))], env=env, check=True, timeout=60)
        yield {"SLURM_CONF": str(folder / "slurm.conf"), "PATH": _path()}
    finally:
        subprocess.run(["bash", SCRIPT, "stop", folder], env=env, check=False, timeout=60)
        shutil.rmtree(folder, ignore_errors=True)


def _path() -> str:
    return os.environ["PATH"] + ":/usr/sbin:/sbin"
