"""What somebody can do who has mounted a mark, and has the connection too: he answers his kernel himself, and has it
believe what it is to go by."""

import os
from contextlib import ExitStack
from pathlib import Path

import pytest

from harness import run, wait_until
from harness.attacking import LIMIT, attacker, expect_all_well, expect_served_apart, leased, nothing_kept
from harness.inside import Place
from harness.marks import USER, Container, Marked, container, marked

NOBODYS = 70000
"""An id that no container here has."""

# `believes(path)`: his kernel takes it to be root's own, who may do all.
LIAR = """
import ctypes, stat
fd = made()
assert say(hello(), b"connection", fd) == "serving"
os.set_blocking(fd, False)
GETATTR, INVAL_INODE, EAGAIN = 3, 2, 11
victim, mode, lying = 0, 0, threading.Event()

def lie():
    while True:
        lying.wait()
        try:
            opcode, unique, nodeid = struct.unpack_from("=4xIQQ", os.read(fd, 1 << 21))
        except BlockingIOError:
            continue
        attributes = struct.pack("=6Q10I", 99, 7, 8, 0, 0, 0, 0, 0, 0, mode, 1, 0, 0, 0, 4096, 0)
        is_it = (opcode, nodeid) == (GETATTR, victim)
        body = struct.pack("=QII", 1 << 30, 0, 0) + attributes if is_it else b""
        try:
            os.write(fd, struct.pack("=IiQ", 16 + len(body), 0 if is_it else -EAGAIN, unique) + body)
        except OSError:
            pass

def believes(path):
    global victim, mode
    handle = ctypes.create_string_buffer(struct.pack("=Ii", 128, 0), 136)
    assert ctypes.CDLL(None).name_to_handle_at(-100, path.encode(), handle, ctypes.byref(ctypes.c_int()), 0) == 0
    high, low = struct.unpack_from("=II", handle.raw, 8)
    victim, mode = high << 32 | low, stat.S_IFMT(os.lstat(path).st_mode) | 0o777
    for _ in range(5000):
        if os.lstat(path).st_uid == 0:
            return
        os.write(fd, struct.pack("=IiQQqq", 40, INVAL_INODE, 0, victim, -1, 0))
        lying.set()
        try:
            os.lstat(path)
        except OSError:
            pass
        lying.clear()
    tell("unbelieved")
    sys.exit()

threading.Thread(target=lie, daemon=True).start()
os.chdir(TARGET + "/PLACE")

def come_to_nothing(path, call):
    believes(path)
    while True:
        try:
            call()
        except OSError as error:
            if error.errno != EAGAIN:  # which is an answer of his own, to what he has taken away last
                return error.errno in (1, 13, 75)  # EPERM, EACCES, EOVERFLOW
        else:
            return False
"""

TAKINGS = {
    "reads": "open('file', 'rb').read()",
    "writes": "open('file', 'r+b').write(b'written')",
    "truncates": "os.truncate('file', 0)",
    "chmods": "os.chmod('file', 0o4777)",
    "chowns": "os.chown('file', 0, 0)",
    "sets times": "os.utime('file', (1, 1))",
    "unlinks": "os.unlink('file')",
    "renames": "os.rename('file', 'renamed')",
    "replaces": "os.rename('own', 'file')",
    "links": "os.link('file', 'linked')",
    "sets an attribute": "os.setxattr('file', 'user.name', b'value')",
    "reads an attribute": "os.getxattr('file', 'user.present')",
    "copies": "os.copy_file_range(os.open('file', 0), os.open('own', os.O_RDWR), 7)",
    "lists": "os.listdir('directory')",
    "looks into": "os.stat('directory/inside')",
    "makes a file in": "open('directory/made', 'w')",
    "makes a directory in": "os.mkdir('directory/made')",
    "removes from": "os.unlink('directory/inside')",
    "moves into": "os.rename('own', 'directory/own')",
    "removes": "os.rmdir('directory')",
}


@pytest.mark.parametrize("how", TAKINGS)
def test_whoever_lies_to_his_kernel_has_no_rights_over_others(place: Place, how: str) -> None:
    """Those whose ids are not inside."""
    place.put("file", mode=0o600)
    os.setxattr(place.image / "file", "user.present", b"value")
    (place.image / "own").write_bytes(b"")
    directory = place.image / "directory"
    directory.mkdir()
    (directory / "inside").write_bytes(b"inside")
    for path, mode in ((place.image / "file", 0o600), (directory / "inside", 0o600), (directory, 0o700)):
        os.chown(path, NOBODYS, NOBODYS)
        path.chmod(mode)
    before = (place.image / "file").stat()
    call = TAKINGS[how]
    what = "directory" if "directory" in call else "file"
    script = LIAR.replace("PLACE", place.name) + f"tell(come_to_nothing({what!r}, lambda: {call}))\nstay()\n"
    with container() as liar, attacker(place.mark, liar, script) as told:
        assert told == ["True"]
    after = (place.image / "file").stat()
    assert before[:7] == after[:7] and after.st_mtime_ns == before.st_mtime_ns
    assert place.stored("file").read_bytes() == b"content"
    assert (place.stored("own").read_bytes(), os.listdir(directory)) == (b"", ["inside"])
    assert not place.has_layers or not place.disk.exists() or set(os.listdir(place.disk)) <= {"own"}


def test_whoever_is_let_in_by_a_mode_is_so_where_the_owner_is_not_inside(place: Place) -> None:
    """As the kernel has it: to read, to execute, and by an ACL; but not to write."""
    public = {"world": 0o644, "program": 0o711, "writable": 0o666, "group": 0o640, "listed": 0o600}
    for name, mode in public.items():
        path = place.image / name
        path.write_bytes(Path("/bin/true").read_bytes() if name == "program" else b"content")
        os.chown(path, NOBODYS, 50 if name == "group" else NOBODYS)
        path.chmod(mode)
    run(["setfacl", "-m", "u:1000:r", place.image / "listed"])
    (place.image / "shared").mkdir()
    (place.image / "shared/file").write_bytes(b"content")
    os.chown(place.image / "shared", NOBODYS, NOBODYS)
    place.shell("cat world; ./program; ls shared; cat shared/file; ! echo > writable", uid=1000)
    assert place.shell("cat listed", uid=1000) == "content"
    assert place.user.run("setpriv", "--reuid=1000", "--regid=50", "--clear-groups", "cat",
                          place.user.target / place.name / "group").stdout == "content"  # fmt: skip
    place.shell("! cat listed; ! cat group", uid=1001)


@pytest.mark.parametrize("when", ["before", "after"])
def test_who_becomes_root_inside_once_he_has_connected_is_not_let_in(when: str) -> None:
    """Though a program that is set-id root there goes on with his connection. Root inside may always mount it."""
    speaking = r"""
import os, socket, sys
connection = socket.socket(fileno=int(sys.argv[1])) if len(sys.argv) == 2 else socket.socket(1, 5)
if len(sys.argv) == 3:
    connection.connect(sys.argv[2])
connection.send(b"hello\x001\x00")
print(os.geteuid(), *connection.recv(4096).decode().split("\0"), flush=True)
sys.stdin.read()
"""
    script = f"""
os.setgroups([])
os.setresgid(1000, 1000, 1000)
os.setresuid(1000, 1000, 1000)
os.chdir("/")
connection = asking()
connection.setblocking(True)
os.set_inheritable(connection.fileno(), True)
words = [str(connection.fileno())] + ([PATH] if {when!r} == "before" else [])
os.execv(TARGET + "/python", ["python", "-I", "-c", {speaking!r}, *words])
"""
    with marked(f"mark_users={USER}") as mark, container() as user:
        user.mount(mark.path)
        user.shell("cp $(readlink -f /usr/bin/python3) python; chmod 4755 python")
        with attacker(mark, user, script) as told:
            assert told[0] == "0"
            assert told[1] == ("ok" if when == "before" else "no")
            assert when == "before" or "root of the user namespace" in " ".join(told)


NONSENSE = """
import random
random.seed(7)
fd = made()
connection = hello()
socket.send_fds(connection, [b"connection"], [fd])
words, given = protocol.receive(connection)
ends = [socket.socket(fileno=number) for number in given]
for end in ends:
    end.setblocking(False)
"""
SAYINGS = {
    "zeros": "bytes(random.choice((1, 4, 8, 16, 4096)))",
    "noise": "random.randbytes(random.choice((1, 3, 4, 5, 8, 12, 16, 64, 60000)))",
    "numbers": "struct.pack('=iI', random.choice((0, 1, -1, os.getpid(), 1 << 30)), random.choice((0, 1, 1 << 31)))",
}


@pytest.mark.parametrize("what", SAYINGS)
def test_an_agent_that_talks_nonsense(mark: Marked, user: Container, other: Container, what: str) -> None:
    script = NONSENSE + f"""
os.listdir(TARGET)
for number in range(3000):
    for end in ends:
        try:
            end.send({SAYINGS[what]})
        except OSError:
            pass
    if number % 100 == 0:
        open(TARGET + "/made%d" % number, "w").close()
tell(words[0].decode())
stay()
"""
    expect_served_apart(mark, user, other, script)


def test_requests_that_are_sent_again_and_again(mark: Marked, user: Container, other: Container) -> None:
    """He has the kernel do that (FUSE_NOTIFY_RESEND), while they wait."""
    paths = [mark.source / f"leased{number}" for number in range(30)]
    for path in paths:
        path.write_bytes(b"content")
        path.chmod(0o666)
    script = """
fd = made()
told = say(hello(), b"connection", fd)
def write(number):
    with open(f"{TARGET}/leased{number}", "ab") as file:
        file.write(b"-written")
threads = [threading.Thread(target=write, args=(number,), daemon=True) for number in range(30)]
for thread in threads:
    thread.start()
time.sleep(0.5)
for _ in range(2000):
    os.write(fd, struct.pack("=IiQ", 16, 7, 0))
tell(told)
stay()
"""
    with nothing_kept(mark, other):
        with ExitStack() as stack:
            held = stack.enter_context(ExitStack())
            held.enter_context(leased(paths))
            told = stack.enter_context(attacker(mark, user, script))
            stack.callback(held.close)
            assert told == ["serving"]
            expect_all_well(mark, other)
            held.close()
            wait_until(lambda: all(b"-written" in path.read_bytes() for path in paths), "they are written", LIMIT)
        user.run("umount", "-l", user.target)
        for path in paths:  # of which the process keeps what it may
            path.unlink()
    assert mark.mount.status()["waiting"] == 0
