"""Who may import whom: the design's rules, as a table.

Left, a module of shiftfs (with all beneath it, unless it has a row of its own) or the package overlay; right,
all of ours that it may import. Whoever is not on the right is not to be known: that is what keeps the codec
free of I/O, the trees free of FUSE, and every foreign function in one place.
"""

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parent.parent

RULES = {
    # What nothing of ours lies beneath.
    "record": "",
    "faults": "",
    "wire": "record wire",
    "native": "",
    "sys": "native sys",
    "tree": "",
    "shift.idmap": "",
    "loop": "",
    "arguments": "",
    "shares": "",
    # From a real directory to a tree: real ids, no FUSE.
    "layer": "native override tree sys",
    "override": "tree sys",
    "descriptors": "layer tree sys",
    "source": "descriptors layer tree sys",
    "overlay": "overlay layer override descriptors tree sys",
    # From a tree to the kernel. Of sys, the handlers know what concerns a descriptor that the tree gave them.
    "shift": "shift.idmap sys",
    "store": "tree",
    "inodes": "store native tree",
    "lane": "channel native ops reads sys.groups tree wire",
    "locks": "locks inodes shares tree sys",
    "locks.ranges": "native sys.locks",
    "locks.real": "sys tree",
    "locks.places": "locks.real layer tree runtime",
    "backing": "inodes tree sys.files",
    "ops": "native ops backing locks shares wire inodes tree shift sys.files sys.locks sys.process",
    "channel": "sys tree",
    "counters": "wire",
    "reads": "counters native wire",
    "reflect.journal": "",
    "reflect.agent": "reflect.agent_child",
    "reflect.agent_child": "reflect.action sys",
    "reflect.ending": "loop",
    "reflect.employment": "reflect loop",
    "reflect.reflection": "reflect ops loop session",
    "reflect": "reflect ops wire inodes tree sys",
    "reflect.happening": "",
    "reflect.sources": "reflect.happening sys",
    "reflect.watchers": "reflect.sources reflect.happening sys",
    "underway": "loop ops reads tree wire",
    "session": "wire backing channel counters faults lane native ops inodes reads tree shift loop underway",
    # The command lines. Only cli puts the parts together.
    "usermaps": "shift.idmap",
    "vocabulary": "shift.idmap",
    "options": "version arguments usermaps vocabulary shift.idmap",
    "mount": "options sys",
    "runtime": "",
    "opening": "options mount layer source tree sys overlay",
    # Marks: only marking and derived put parts together, for the mounts that others make.
    "mark.protocol": "runtime",
    "mark.exposure": "",
    "mark.shared": "shares sys.files tree",
    "mark.broker": "mark.protocol loop shift.idmap usermaps sys",
    "mark.client": "mark.protocol mount options reflect.agent_child sys",
    "mark.permanent": "mark.exposure layer sys",
    "mark.serving": "mark daemon interpreter layer locks loop mount opening options sys tree",
    "marks": "mark mount",
    "mark.telling": "inodes ops reflect.happening wire",
    "mark.outsiders": "inodes ops shift.idmap sys tree wire",
    "mark": "version mark channel inodes locks loop mount ops options reflect runtime session shares shift.idmap sys"
    " tree",
    "daemon": "",
    "interpreter": "",
    "status": "version options session loop inodes tree shift.idmap wire sys.locks reflect.journal"
    " reflect.reflection",
    "cli": "everything",
    "__main__": "cli",
    "asking": "ops.control",
    "events": "asking",
    "ctl": "version asking events marks",
}

# What may be named in annotations only, beneath `if TYPE_CHECKING:`, in addition.
ANNOTATIONS = {"ops": "session"}

# What is not ours and only some may import.
RESERVED = {"ctypes": "sys", "mfusepy": "sys"}

# All of what is not ours that a module may import.
OUTSIDE = {"wire": "struct enum typing"}


class Import(NamedTuple):
    name: str  # ours without "shiftfs.", and "version" for what lies in shiftfs/__init__.py
    ours: bool
    annotation: bool  # beneath `if TYPE_CHECKING:`
    line: int


def modules() -> dict[str, Path]:
    """Our modules by their dotted name: "shiftfs.wire.abi", "overlay.entry"."""
    paths = [path for package in ("shiftfs", "overlay") for path in (ROOT / package).rglob("*.py")]
    dotted = (".".join(path.relative_to(ROOT).with_suffix("").parts) for path in paths)
    return {name.removesuffix(".__init__"): path for name, path in zip(dotted, paths, strict=True)}


MODULES = modules()


def short(name: str) -> str:
    return "version" if name == "shiftfs" else name.removeprefix("shiftfs.")


def imports(module: str, source: str, is_package: bool = False) -> Iterator[Import]:
    """Every import in a module's source, wherever in it."""
    tree = ast.parse(source)
    guarded = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for statement in node.body
        for inner in ast.walk(statement)
    }
    package = module if is_package else module.rpartition(".")[0]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")
            base = ".".join([*parents[: len(parents) + 1 - node.level], *filter(None, [node.module])])
            target = base if node.level else str(node.module)
            names = [_imported(target, alias.name) for alias in node.names]
        else:
            continue
        for name in names:
            ours = name.partition(".")[0] in ("shiftfs", "overlay")
            yield Import(short(name) if ours else name, ours, id(node) in guarded, node.lineno)


def _imported(target: str, name: str) -> str:
    """`from target import name`: the module name when there is such a one, else something in target."""
    return f"{target}.{name}" if f"{target}.{name}" in MODULES else target


def covers(allowed: str, name: str) -> bool:
    return any(name == word or name.startswith(f"{word}.") for word in allowed.split())


def row(table: dict[str, str], module: str) -> str | None:
    """The entry of a module or of its nearest parent."""
    name = short(module)
    while name and name not in table:
        name = name.rpartition(".")[0]
    return table.get(name)


def violations(module: str, source: str, is_package: bool = False) -> Iterator[str]:
    allowed = row(RULES, module)
    if allowed is None:
        yield f"{module} has no row"
        return
    for found in imports(module, source, is_package):
        where = f"{module}, line {found.line}: {found.name}"
        if found.ours:
            annotations = (row(ANNOTATIONS, module) or "") if found.annotation else ""
            if allowed != "everything" and not covers(f"{allowed} {annotations}", found.name):
                yield f"{where} is none of: {allowed or 'nothing of ours'}"
            continue
        holder = row(RESERVED, found.name)
        if holder is not None and not covers(holder, short(module)):
            yield f"{where} is for {holder} alone"
        outside = row(OUTSIDE, module)
        if outside is not None and not covers(outside, found.name):
            yield f"{where} is none of: {outside}"


@pytest.mark.parametrize("module", sorted(MODULES))
def test_imports(module: str) -> None:
    if module == "shiftfs":
        assert not [found for found in imports(module, MODULES[module].read_text(), True) if found.ours]
        return
    path = MODULES[module]
    assert list(violations(module, path.read_text(), path.name == "__init__.py")) == []


@pytest.mark.parametrize(
    ("module", "source", "found"),
    [
        ("shiftfs.wire.abi", "import os", "os is none of: struct"),
        ("shiftfs.wire.abi", "from .. import tree", "tree is none of: record wire"),
        ("shiftfs.tree", "from .wire import abi", "wire.abi is none of: nothing of ours"),
        ("shiftfs.tree", "import shiftfs", "version is none of"),
        ("shiftfs.layer", "def f():\n    import ctypes.util", "line 2: ctypes.util is for sys alone"),
        ("shiftfs.layer", "from shiftfs.session import Session", "session is none of"),
        ("shiftfs.shift.idmap", "from ..sys import libc", "sys.libc is none of: nothing of ours"),
        ("shiftfs.ops.files", "from ..session import Session", "session is none of"),
        ("shiftfs.ops.files", "from ..layer import Layer", "layer is none of"),
        ("shiftfs.ops.files", "from .. import channel", "channel is none of"),
        ("shiftfs.mount", "from .cli import main", "cli is none of"),
        ("overlay.tree", "from shiftfs import inodes", "inodes is none of: overlay layer override"),
        ("shiftfs.novelty", "", "has no row"),
    ],
)
def test_a_violation_is_found(module: str, source: str, found: str) -> None:
    (complaint,) = violations(module, source)
    assert found in complaint


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("shiftfs.ops.files", "if TYPE_CHECKING:\n    from ..session import Session"),
        ("shiftfs.sys.files", "import ctypes\nfrom . import libc"),
        ("shiftfs.shift.embedded", "from .idmap import IdMap"),
        ("overlay.mutate", "from shiftfs.tree import RealKey\nfrom . import entry"),
    ],
)
def test_what_is_allowed_is_not_blamed(module: str, source: str) -> None:
    assert list(violations(module, source)) == []
