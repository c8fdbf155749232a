"""A Slurm of one machine, started for a test and ended after it: its own controller, node, keys and ports."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue")

CONFIGURATION = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SchedulerType=sched/backfill
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ReturnToService=2
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
KillWait=2
SchedulerParameters=batch_sched_delay=1,sched_interval=2,requeue_delay=1
NodeName={host} NodeAddr=127.0.0.1 CPUs=2 RealMemory=1000 State=UNKNOWN
PartitionName=debug Nodes={host} Default=YES MaxTime=INFINITE State=UP
"""


def missing() -> str:
    """Say why Slurm cannot be started here; empty if it can."""
    absent = [name for name in PROGRAMS if not _program(name)]
    if absent:
        return f"no {', '.join(absent)} here (Debian: apt-get install slurm-wlm munge)"
    return "" if os.getuid() == 0 else "Slurm runs jobs of its own user only as root"


def _program(name: str) -> str | None:
    return shutil.which(name, path=f"{os.environ['PATH']}{os.pathsep}/usr/sbin")


@contextmanager
def slurm(folder: Path) -> Iterator[Path]:
    """Start Slurm in a folder; yield its configuration, for `SLURM_CONF`."""
    for name in ("state", "spool"):
        (folder / name).mkdir(parents=True)
    (folder / "munge.key").write_bytes(os.urandom(1024))
    (folder / "munge.key").chmod(0o400)
    configuration = folder / "slurm.conf"
    host = socket.gethostname().partition(".")[0]
    configuration.write_text(CONFIGURATION.format(host=host, folder=folder, ports=[_free_port(), _free_port()]))
    environment = {**os.environ, "SLURM_CONF": str(configuration)}
    options = [
        "--force",
        f"--key-file={folder}/munge.key",
        f"--socket={folder}/munge.socket",
        f"--pid-file={folder}/munge.pid",
        f"--log-file={folder}/munge.log",
        f"--seed-file={folder}/munge.seed",
    ]
    try:
        for command in (["munged", *options], ["slurmctld"], ["slurmd"]):
            program = _program(command[0])
            assert program
            subprocess.run([program, *command[1:]], env=environment, check=True, capture_output=True)
        _wait_for_node(environment)
        yield configuration
    finally:
        for name in ("slurmd", "slurmctld", "munge"):
            _end(folder / f"{name}.pid")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _wait_for_node(environment: dict[str, str]) -> None:
    deadline = time.monotonic() + 60
    while True:
        done = subprocess.run(
            ["sinfo", "--noheader", "--format=%T"], env=environment, text=True, capture_output=True, check=False
        )
        if done.stdout.strip() == "idle":
            return
        assert time.monotonic() < deadline, f"the node does not come up: {done.stdout} {done.stderr}"
        time.sleep(0.5)


def _end(pid_file: Path) -> None:
    with suppress(FileNotFoundError, ValueError, psutil.NoSuchProcess):
        process = psutil.Process(int(pid_file.read_text()))
        process.terminate()
        process.wait(20)
