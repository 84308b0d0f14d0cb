"""A Slurm of one node with accounting, for tests: everything in one temporary folder, on ports of its own.

It needs root and the Debian packages slurm-wlm, munge, slurmdbd and mariadb-server, but no systemd: the daemons run in
the foreground as children of the test, and die with it.
"""

import os
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from requirements import require

DAEMONS = ("munged", "mariadbd", "mariadb-install-db", "slurmdbd", "slurmctld", "slurmd", "sbatch", "setpriv")
_SYSTEM_PATH = f"{os.environ['PATH']}:/usr/local/sbin:/usr/sbin:/sbin"
_SECONDS_TO_START = 40.0

_SLURM = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller_port}
SlurmdPort={node_port}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
StateSaveLocation={folder}/controller
SlurmdSpoolDir={folder}/node
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
MpiDefault=none
GresTypes=gpu
EnforcePartLimits=ALL
ReturnToService=2
KillWait=5
SchedulerParameters=sched_interval=1,sched_min_interval=100000,batch_sched_delay=0,bf_interval=1
SlurmdParameters=config_overrides
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort={accounting_port}
AccountingStoragePass={folder}/munge.socket
JobAcctGatherType=jobacct_gather/none
NodeName={host} NodeAddr=127.0.0.1 CPUs=2 RealMemory=8000 Gres=gpu:2
PartitionName=short Nodes=ALL Default=YES MaxTime=60 State=UP
"""

_ACCOUNTING = """
DbdHost=localhost
DbdAddr=127.0.0.1
DbdPort={accounting_port}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
PidFile={folder}/slurmdbd.pid
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort={database_port}
StorageUser=slurm
StoragePass={password}
StorageLoc=slurm
"""


class ClusterError(RuntimeError):
    """Slurm did not come up; says what its daemons logged."""


@dataclass(frozen=True)
class Cluster:
    """A running Slurm.

    Attributes:
        folder: Where all of it lies.
        environment: What its commands need to find it.
    """

    folder: Path
    environment: dict[str, str]

    def ask(self, *command: str) -> str:
        """Run one of Slurm's commands and return what it prints."""
        return subprocess.run(
            command, env=os.environ | self.environment, capture_output=True, text=True, check=True, timeout=30
        ).stdout

    def state(self, job: str) -> str:
        """Return the state of a job, or of a task of an array, as the accounting has it."""
        return self.ask(
            "sacct", "--noheader", "--allocations", "--parsable2", "--format=State", f"--jobs={job}"
        ).strip()

    def wait(self, until: Callable[[], bool], *, seconds: float = 60.0) -> None:
        """Wait until something holds; says what the queue looks like if it does not come about."""
        deadline = time.monotonic() + seconds
        while not until():
            if time.monotonic() > deadline:
                raise AssertionError(f"not within {seconds} s\n{self.ask('squeue')}\n{_logs(self.folder)}")
            time.sleep(0.2)

    def start_requeued(self, task: str) -> None:
        """Start a task that has been queued again, which would wait for two minutes."""
        self.wait(lambda: self.ask("squeue", "--noheader", "--array", "--format=%i %T").strip() == f"{task} PENDING")
        time.sleep(2)  # the node does not start what it has ended within the same second
        self.ask("scontrol", "update", f"jobid={task}", "StartTime=now")

    def wait_until_empty(self, *, seconds: float = 60.0) -> None:
        """Wait until no job is left in the queue."""
        self.wait(lambda: not self.ask("squeue", "--noheader").strip(), seconds=seconds)


def require_slurm() -> None:
    """Skip the calling test where Slurm cannot be brought up."""
    missing = [name for name in DAEMONS if shutil.which(name, path=_SYSTEM_PATH) is None]
    packages = "apt-get install slurm-wlm munge slurmdbd mariadb-server"
    require("slurm", found=not missing, reason=f"a Slurm for tests needs {', '.join(missing)}: {packages}")
    require("slurm", found=os.geteuid() == 0, reason="a Slurm for tests needs root")


@contextmanager
def slurm_cluster() -> Iterator[Cluster]:
    """Bring up munge, a database, the accounting, a controller and a node with two GPUs; take all down at the end."""
    with tempfile.TemporaryDirectory(prefix="slurm-") as name, ExitStack() as stack:  # sockets need a short path
        folder = Path(name)
        environment = {"SLURM_CONF": str(folder / "slurm.conf"), "PATH": _SYSTEM_PATH}
        cluster = Cluster(folder, environment)
        _configure(folder)
        stack.callback(_kill_everything_of, folder)
        try:
            _start_all(cluster, stack)
            stack.callback(_cancel_all, cluster)
        except (ClusterError, subprocess.SubprocessError) as error:
            output = getattr(error, "stderr", None) or ""
            raise ClusterError(f"Slurm did not come up: {error} {output}\n{_logs(folder)}") from None
        yield cluster


def _configure(folder: Path) -> None:
    """Write keys and settings."""
    names = ("controller_port", "node_port", "accounting_port", "database_port")
    values = dict(zip(names, _free_ports(len(names)), strict=True))
    values |= {"folder": folder, "host": socket.gethostname().split(".")[0], "password": secrets.token_hex(16)}
    for file, text in {
        "slurm.conf": _SLURM.format_map(values),
        "slurmdbd.conf": _ACCOUNTING.format_map(values),
        "gres.conf": "Name=gpu File=/dev/null\nName=gpu File=/dev/zero\n",
        "my.cnf": f"[mariadbd]\nport={values['database_port']}\nbind-address=127.0.0.1\n",
        "grant.sql": f"CREATE USER slurm@'127.0.0.1' IDENTIFIED BY '{values['password']}';\n"
        "GRANT ALL ON slurm.* TO slurm@'127.0.0.1';\n",
    }.items():
        (folder / file).write_text(text, encoding="utf-8")
        (folder / file).chmod(0o600)
    (folder / "munge.key").write_bytes(secrets.token_bytes(128))
    (folder / "munge.key").chmod(0o600)
    for name in ("controller", "node", "database"):
        (folder / name).mkdir()


def _start_all(cluster: Cluster, stack: ExitStack) -> None:
    folder, environment = cluster.folder, os.environ | cluster.environment

    def start(name: str, *arguments: str, ready: Callable[[], bool]) -> None:
        log = stack.enter_context((folder / f"{name}.log").open("wb"))
        command = ["setpriv", "--pdeathsig", "KILL", name, *arguments]
        daemon = subprocess.Popen(
            command, env=environment, stdout=log, stderr=log, stdin=subprocess.DEVNULL, cwd=folder
        )
        stack.callback(_stop, daemon)
        deadline = time.monotonic() + _SECONDS_TO_START
        while not ready():
            if daemon.poll() is not None:
                raise ClusterError(f"{name} ended with code {daemon.returncode}")
            if time.monotonic() > deadline:
                raise ClusterError(f"{name} was not ready within {_SECONDS_TO_START} s")
            time.sleep(0.05)

    def answers(*command: str) -> Callable[[], bool]:
        return lambda: subprocess.run(command, env=environment, capture_output=True, timeout=30).returncode == 0

    start(
        "munged", "--foreground", "--force", f"--socket={folder}/munge.socket", f"--key-file={folder}/munge.key",
        f"--pid-file={folder}/munge.pid", f"--log-file={folder}/munge.log", f"--seed-file={folder}/munge.seed",
        ready=answers("munge", f"--socket={folder}/munge.socket", "--no-input"),
    )  # fmt: skip
    database = f"--datadir={folder}/database"
    subprocess.run(
        ["mariadb-install-db", "--no-defaults", "--user=root", database, "--skip-test-db"],
        env=environment, check=True, capture_output=True, text=True, timeout=_SECONDS_TO_START,
    )  # fmt: skip
    start(
        "mariadbd", f"--defaults-file={folder}/my.cnf", "--user=root", database, f"--socket={folder}/database.socket",
        f"--pid-file={folder}/database.pid", f"--init-file={folder}/grant.sql",
        ready=(folder / "database.socket").exists,
    )  # fmt: skip
    start("slurmdbd", "-D", ready=answers("sacctmgr", "--immediate", "add", "cluster", "test"))
    start("slurmctld", "-D", "-c", ready=answers("scontrol", "ping"))
    start("slurmd", "-D", ready=lambda: "idle" in cluster.ask("sinfo", "--noheader", "--format=%T"))


def _free_ports(count: int) -> Sequence[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [int(one.getsockname()[1]) for one in sockets]


def _cancel_all(cluster: Cluster) -> None:
    with suppress(AssertionError, subprocess.SubprocessError):  # what is left is killed
        cluster.ask("scancel", "--full", "--signal=KILL", "--me")
        cluster.ask("scancel", "--me")
        cluster.wait_until_empty(seconds=10)


def _stop(daemon: "subprocess.Popen[bytes]") -> None:
    daemon.terminate()
    try:
        daemon.wait(timeout=10)
    except subprocess.TimeoutExpired:
        daemon.kill()
        daemon.wait()


def _kill_everything_of(folder: Path) -> None:
    """End processes that carry the folder in their environment or command: jobs and what watches over them."""
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            found = (entry / "environ").read_bytes() + (entry / "cmdline").read_bytes()
            if str(folder).encode() in found and int(entry.name) != os.getpid():
                os.kill(int(entry.name), signal.SIGKILL)


def _logs(folder: Path) -> str:
    """Return the ends of what the daemons logged."""
    ends = {path.name: path.read_text(encoding="utf-8", errors="replace")[-2000:] for path in folder.glob("*.log")}
    return "\n".join(f"--- {name}\n{end}" for name, end in sorted(ends.items()))
