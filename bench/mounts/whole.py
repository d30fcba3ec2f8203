"""Whole jobs, as people wait for them: untar, git status, grep, imports, a build, the installation of a package.

The tree is Python's own library, which is on every machine that this runs on.
"""

import os
import shutil
import subprocess
import sysconfig
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from ..jobs import Job, Layout, Mounted, Scale, Work

_LIMIT = 280.0
_SOURCES = 20
_PACKAGED = 1000
_LIBRARY = Path(sysconfig.get_path("stdlib"))
_NOT_COPIED = ("test", "tests", "idlelib", "dist-packages", "site-packages", "config-*", "ensurepip")
_IMPORTS = """
import importlib, sys
for name in sorted(sys.stdlib_module_names - {'antigravity', 'this', 'idlelib', '__main__'}):
    try: importlib.import_module(name)
    except ImportError: pass
"""


class Things(NamedTuple):
    """What jobs bring along, beside the mount."""

    archive: Path
    package: Path | None  # None without dpkg
    python: Path  # below the root


def _make(base: Path, scale: Scale) -> Things:
    root = base / "lower0"
    python = Path("lib", _LIBRARY.name)
    shutil.copytree(_LIBRARY, root / python, symlinks=True, ignore=shutil.ignore_patterns(*_NOT_COPIED))
    _run(["/usr/bin/python3", "-m", "compileall", "-qq", "-s", root, root / python], {})
    archive = base / "tree.tar"
    _run(["tar", "-C", root, "-cf", archive, "lib"])
    if shutil.which("git"):
        for words in (["init", "-q"], ["add", "-A"], ["commit", "-q", "-m", "tree"]):
            _run(["git", "-C", root / "lib", "-c", "user.name=root", "-c", "user.email=root@localhost", *words])
    _make_project(root / "project")
    for name in ("info", "updates", "triggers", "parts"):
        (root / "root/var/lib/dpkg" / name).mkdir(parents=True)
    (root / "root/var/lib/dpkg/status").touch()
    return Things(archive, _make_package(base) if shutil.which("dpkg-deb") else None, python)


def _make_project(project: Path) -> None:
    """Some sources that include common headers of theirs, and a Makefile."""
    project.mkdir()
    for number in range(_SOURCES):
        (project / f"part{number}.h").write_text(f"int part{number}(int);\n")
    includes = "".join(f'#include "part{number}.h"\n' for number in range(_SOURCES))
    for number in range(_SOURCES):
        body = f"int part{number}(int of) {{ return of ? part{(number + 1) % _SOURCES}(of - 1) : {number}; }}\n"
        (project / f"part{number}.c").write_text(f"#include <stdio.h>\n{includes}{body}")
    (project / "main.c").write_text(f"#include <stdio.h>\n{includes}int main(void) {{ return part0(9) - 9; }}\n")
    objects = " ".join(f"part{number}.o" for number in range(_SOURCES))
    (project / "Makefile").write_text(f"program: main.o {objects}\n\t$(CC) -o $@ $^\n*.o: *.h\n")


def _make_package(base: Path) -> Path:
    content, package = base / "content", base / "package.deb"
    (content / "DEBIAN").mkdir(parents=True)
    (content / "DEBIAN" / "control").write_text(
        "Package: bench\nVersion: 1\nArchitecture: all\nMaintainer: root <root@localhost>\nDescription: files\n"
    )
    for number in range(_PACKAGED):
        directory = content / f"usr/share/bench/{number // 50}"
        directory.mkdir(parents=True, exist_ok=True)
        (directory / f"file{number}").write_text(f"{number}\n" * 200)
    _run(["dpkg-deb", "--root-owner-group", "-Znone", "--build", content, package])
    return package


PROGRAMS = Layout("a system's files", _make)


def _run(words: Sequence[str | Path], environment: Mapping[str, str] | None = None) -> None:
    done = subprocess.run(
        [str(word) for word in words],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        timeout=_LIMIT,
        check=False,
        env={"PATH": os.environ["PATH"], "LC_ALL": "C"} | dict(environment or {}),
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(map(str, words))}: {os.fsdecode(done.stderr).strip()[-500:]}")


def _untar(mounted: Mounted, things: Things, scale: Scale) -> Work:
    target = mounted.at / "unpacked"
    target.mkdir()
    return Work(lambda: _run(["tar", "-C", target, "-xf", things.archive]))


def _git_status(mounted: Mounted, things: Things, scale: Scale) -> Work:
    words = ["git", "-c", "safe.directory=*", "-C", str(mounted.at / "lib"), "status", "--porcelain"]
    _run(words)  # writes down the inode numbers that this mount shows
    return Work(lambda: _run(words))


def _grep(mounted: Mounted, things: Things, scale: Scale) -> Work:
    return Work(lambda: _run(["grep", "-rlF", "import os", mounted.at / things.python]))


def _find(mounted: Mounted, things: Things, scale: Scale) -> Work:
    return Work(lambda: _run(["find", mounted.at, "-xdev", "-type", "f", "-size", "+1000000c"]))


def _imports(mounted: Mounted, things: Things, scale: Scale) -> Work:
    return Work(lambda: _run(["/usr/bin/python3", "-B", "-c", _IMPORTS], {"PYTHONHOME": str(mounted.at)}))


def _compile(mounted: Mounted, things: Things, scale: Scale) -> Work:
    return Work(lambda: _run(["make", "-s", "-C", mounted.at / "project", "CC=cc"]))


def _dpkg(mounted: Mounted, things: Things, scale: Scale) -> Work:
    if things.package is None:
        raise RuntimeError("dpkg-deb is not on this machine")
    package = str(things.package)
    forced = ["--force-unsafe-io", "--force-not-root", "--force-script-chrootless"]
    return Work(lambda: _run(["dpkg", f"--root={mounted.at}/root", *forced, "--install", package]))


def _whole(name: str, prepare: Callable[[Mounted, Things, Scale], Work], needs: str, writes: bool) -> Job:
    return Job(name, PROGRAMS, prepare, "cold", writes=writes, needs=needs)


def jobs(scale: Scale) -> tuple[Job, ...]:
    return (
        _whole("untar", _untar, "tar", True),
        _whole("git status", _git_status, "git", True),
        _whole("grep -r", _grep, "grep", False),
        _whole("find", _find, "find", False),
        _whole("python imports", _imports, "/usr/bin/python3", False),
        _whole("build of a C project", _compile, "make", True),
        _whole("dpkg --install", _dpkg, "dpkg", True),
    )
