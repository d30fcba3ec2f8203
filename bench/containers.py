"""What users of containers wait for, on rootless podman with shiftfs and with fuse-overlayfs as its mount program.

`python -m bench.containers [--rounds N] [--only JOB,...]`, as root, with the packages of `make test`.
Both programs take turns over the same images, in storage and namespaces that go at the end; before each job the kernel
forgets names and inodes. Jobs inside a container are timed there, after it has started. Medians are compared.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final, NamedTuple

from harness.debian import busybox_tar, debian_tar
from harness.leftovers import own_area
from harness.podman import Engine, engine

from .machine import described, machine
from .mounting import drop_caches

_LIMIT: Final = 600.0
"""Seconds that a command may take."""

_FILES: Final = 10_000

_PREPARE: Final = """
apt-get -qq update; apt-get -qq install --yes git python3 >/dev/null 2>&1
cp -a /usr/lib/python3.?* /root/tree; cd /root/tree; git init -q
git config user.email root@localhost; git config user.name root
git add -A; git commit -qm tree; tar -C /root -cf /srv/tree.tar --exclude=.git tree
"""
_IMPORTS: Final = (
    "import importlib, sys\\n"
    "for name in sorted(sys.stdlib_module_names - {'antigravity', 'this', 'idlelib', '__main__'}):\\n"
    "    try: importlib.import_module(name)\\n"
    "    except ImportError: pass\\n"
)


class _Inside(NamedTuple):
    """A job of a container: made ready by `before`, which is not timed."""

    image: str
    job: str
    before: str = ":"


_INSIDE: Final = {
    "apt-get install": _Inside("debian", "apt-get -qq install --yes git 2>&1", "apt-get -qq update"),
    "untar": _Inside("prepared", "tar -C /tmp -xf /srv/tree.tar"),
    "git status": _Inside("prepared", "git -C /root/tree status"),
    "python imports": _Inside("prepared", f'printf "{_IMPORTS}" | PYTHONDONTWRITEBYTECODE=1 python3 -'),
    "find /": _Inside("prepared", "find / -xdev -type f -size +1000000c"),
}


def _podman_run(podman: Engine) -> float:
    begun = time.perf_counter()
    podman.shell("box", "true")
    return time.perf_counter() - begun


def _commit(podman: Engine) -> float:
    make = f"for number in range({_FILES}): open(f'/root/{{number}}', 'w').write('x')"
    podman.podman("run", "--name=many", "prepared", "python3", "-c", make, limit=_LIMIT)
    drop_caches()
    begun = time.perf_counter()
    podman.podman("commit", "--quiet", "many", "committed", limit=_LIMIT)
    taken = time.perf_counter() - begun
    podman.podman("rm", "--force", "--time=0", "many")
    podman.podman("rmi", "--force", "committed")
    return taken


def _inside(work: _Inside, podman: Engine) -> float:
    timed = f"{work.before}; begun=$(date +%s%N); {work.job} >/dev/null; echo $(($(date +%s%N) - begun))"
    said = podman.podman("run", "--rm", work.image, "sh", "-ec", timed, limit=_LIMIT)
    return int(said.splitlines()[-1]) / 1e9


def _jobs() -> dict[str, Callable[[Engine], float]]:
    inside = {name: lambda podman, work=work: _inside(work, podman) for name, work in _INSIDE.items()}
    return {"podman run true": _podman_run, **inside, f"commit of {_FILES}": _commit}


def _images(podman: Engine) -> None:
    archive = busybox_tar(podman.base / "box.tar")
    podman.podman("import", "--quiet", archive, "box")
    podman.podman("import", "--quiet", debian_tar(), "debian", limit=_LIMIT)
    podman.podman("run", "--name=preparing", "debian", "sh", "-ec", _PREPARE, limit=_LIMIT)
    podman.podman("commit", "--quiet", "preparing", "prepared", limit=_LIMIT)
    podman.podman("rm", "preparing")


def main() -> int:
    parser = argparse.ArgumentParser(description="Rootless podman on shiftfs and on fuse-overlayfs.")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", default=",".join(_jobs()), help="some of: %(default)s")
    arguments = parser.parse_args()
    jobs = {name: call for name, call in _jobs().items() if name in arguments.only.split(",")}
    times: dict[str, dict[str, list[float]]] = {job: {"shiftfs": [], "fuse-overlayfs": []} for job in jobs}
    with own_area("bench"), engine() as podman:
        programs = {"shiftfs": podman.program, "fuse-overlayfs": Path("/usr/bin/fuse-overlayfs")}
        _images(podman)
        for _ in range(arguments.rounds):
            for job, call in jobs.items():
                for subject, program in programs.items():
                    podman.use(program)
                    drop_caches()
                    times[job][subject].append(call(podman))
    _report(times)
    return 0


def _report(times: dict[str, dict[str, list[float]]]) -> None:
    print(described(machine(Path("/var/tmp"), ["fuse-overlayfs", "podman"])))
    for job, subjects in times.items():
        ours, theirs = (statistics.median(subjects[name]) for name in ("shiftfs", "fuse-overlayfs"))
        print(f"{job:<20}{ours:>10.3f} s{theirs:>10.3f} s  shiftfs / fuse-overlayfs {ours / theirs:.2f}")


if __name__ == "__main__":
    sys.exit(main())
