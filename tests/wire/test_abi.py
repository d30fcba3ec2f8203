"""Layouts and numbers against the kernel's: sizes as literals, and all that linux/fuse.h knows here."""

import shutil
import subprocess
from enum import IntEnum
from pathlib import Path
from struct import Struct

import pytest

from shiftfs.wire import abi

HEADER_FILE = Path("/usr/include/linux/fuse.h")

# Struct of abi.py: (struct of the kernel, its size, the minor version that brought it or this size).
STRUCTS: dict[str, tuple[str, int, int]] = {
    "HEADER": ("fuse_in_header", 40, 0),
    "OUT_HEADER": ("fuse_out_header", 16, 0),
    "FORGET_IN": ("fuse_forget_in", 8, 0),
    "BATCH_FORGET_IN": ("fuse_batch_forget_in", 8, 0),
    "FORGET_ONE": ("fuse_forget_one", 16, 0),
    "GETATTR_IN": ("fuse_getattr_in", 16, 0),
    "SETATTR_IN": ("fuse_setattr_in", 88, 0),
    "MKNOD_IN": ("fuse_mknod_in", 16, 0),
    "MKDIR_IN": ("fuse_mkdir_in", 8, 0),
    "RENAME_IN": ("fuse_rename_in", 8, 0),
    "RENAME2_IN": ("fuse_rename2_in", 16, 0),
    "LINK_IN": ("fuse_link_in", 8, 0),
    "OPEN_IN": ("fuse_open_in", 8, 0),
    "CREATE_IN": ("fuse_create_in", 16, 0),
    "READ_IN": ("fuse_read_in", 40, 0),
    "WRITE_IN": ("fuse_write_in", 40, 0),
    "RELEASE_IN": ("fuse_release_in", 24, 0),
    "FLUSH_IN": ("fuse_flush_in", 24, 0),
    "FSYNC_IN": ("fuse_fsync_in", 16, 0),
    "SETXATTR_IN": ("fuse_setxattr_in", 16, 33),
    "GETXATTR_IN": ("fuse_getxattr_in", 8, 0),
    "INIT_IN": ("fuse_init_in", 64, 36),
    "LK_IN": ("fuse_lk_in", 48, 0),
    "ACCESS_IN": ("fuse_access_in", 8, 0),
    "INTERRUPT_IN": ("fuse_interrupt_in", 8, 0),
    "BMAP_IN": ("fuse_bmap_in", 16, 0),
    "IOCTL_IN": ("fuse_ioctl_in", 32, 0),
    "POLL_IN": ("fuse_poll_in", 24, 0),
    "FALLOCATE_IN": ("fuse_fallocate_in", 32, 0),
    "LSEEK_IN": ("fuse_lseek_in", 24, 0),
    "COPY_FILE_RANGE_IN": ("fuse_copy_file_range_in", 56, 0),
    "SYNCFS_IN": ("fuse_syncfs_in", 8, 34),
    "STATX_IN": ("fuse_statx_in", 24, 39),
    "NOTIFY_RETRIEVE_IN": ("fuse_notify_retrieve_in", 40, 0),
    "ATTR": ("fuse_attr", 88, 0),
    "ENTRY_OUT": ("fuse_entry_out", 128, 0),
    "ATTR_OUT": ("fuse_attr_out", 104, 0),
    "OPEN_OUT": ("fuse_open_out", 16, 0),
    "WRITE_OUT": ("fuse_write_out", 8, 0),
    "STATFS_OUT": ("fuse_statfs_out", 80, 0),
    "GETXATTR_OUT": ("fuse_getxattr_out", 8, 0),
    "LK_OUT": ("fuse_lk_out", 24, 0),
    "IOCTL_OUT": ("fuse_ioctl_out", 16, 0),
    "POLL_OUT": ("fuse_poll_out", 8, 0),
    "LSEEK_OUT": ("fuse_lseek_out", 8, 0),
    "COPY_FILE_RANGE_OUT": ("fuse_copy_file_range_out", 8, 45),
    "STATX_OUT": ("fuse_statx_out", 288, 39),
    "INIT_OUT": ("fuse_init_out", 64, 0),
    "DIRENT": ("fuse_dirent", 24, 0),
    "NOTIFY_POLL_WAKEUP_OUT": ("fuse_notify_poll_wakeup_out", 8, 0),
    "NOTIFY_INVAL_INODE_OUT": ("fuse_notify_inval_inode_out", 24, 0),
    "NOTIFY_INVAL_ENTRY_OUT": ("fuse_notify_inval_entry_out", 16, 0),
    "NOTIFY_DELETE_OUT": ("fuse_notify_delete_out", 24, 0),
}
# Forms that only older kernels use; the header has their sizes at most as constants.
COMPAT = {"SETXATTR_IN_COMPAT": 8, "INIT_IN_COMPAT": 16}

# Flags are macros there, so that their absence can be told.
FLAGS = {
    abi.InitFlag: "FUSE_",
    abi.Fattr: "FATTR_",
    abi.FOpen: "FOPEN_",
    abi.OpenInFlag: "FUSE_OPEN_",
    abi.GetattrFlag: "FUSE_GETATTR_",
    abi.ReadFlag: "FUSE_READ_",
    abi.WriteFlag: "FUSE_WRITE_",
    abi.ReleaseFlag: "FUSE_RELEASE_",
    abi.FsyncFlag: "FUSE_FSYNC_",
    abi.LkFlag: "FUSE_LK_",
    abi.SetxattrFlag: "FUSE_SETXATTR_",
    abi.IoctlFlag: "FUSE_IOCTL_",
    abi.PollFlag: "FUSE_POLL_",
    abi.AttrFlag: "FUSE_ATTR_",
    abi.InvalEntryFlag: "FUSE_",
}
SPELT = {"FUSE_IOCTL_BITS32": "FUSE_IOCTL_32BIT"}

# Enumerators are not; these came after the oldest version.
SINCE = {
    "FUSE_SYNCFS": 34,
    "FUSE_TMPFILE": 37,
    "FUSE_STATX": 39,
    "FUSE_NOTIFY_RESEND": 40,
    "FUSE_NOTIFY_INC_EPOCH": 44,
    "FUSE_COPY_FILE_RANGE_64": 45,
    "FUSE_NOTIFY_PRUNE": 45,
}


def test_every_struct_is_compared() -> None:
    defined = {name for name, value in vars(abi).items() if isinstance(value, Struct)}
    assert defined == set(STRUCTS) | set(COMPAT)


def test_sizes() -> None:
    sizes = {name: size for name, (_, size, _) in STRUCTS.items()} | COMPAT
    assert {name: getattr(abi, name).size for name in sizes} == sizes


def test_layouts_depend_on_no_compiler() -> None:
    assert all(getattr(abi, name).format.startswith("=") for name in [*STRUCTS, *COMPAT])


def test_the_header_file_agrees(tmp_path: Path) -> None:
    """The installed header may be older than 7.45: what it does not know is not compared."""
    if not shutil.which("gcc") or not HEADER_FILE.exists():
        pytest.skip(f"no gcc or no {HEADER_FILE}")
    ours = dict(sizes_by_kernel_name() + flags_by_kernel_name() + numbers_by_kernel_name())
    theirs = ask_the_compiler(tmp_path)
    assert len(theirs) > 100
    assert theirs == {name: ours[name] for name in theirs}


def sizes_by_kernel_name() -> list[tuple[str, int]]:
    return [(kernel, getattr(abi, name).size) for name, (kernel, _, _) in STRUCTS.items()]


def flags_by_kernel_name() -> list[tuple[str, int]]:
    kinds = [(members(kind), prefix) for kind, prefix in FLAGS.items()]
    named = [(prefix + name, value) for flags, prefix in kinds for name, value in flags.items()]
    return [(SPELT.get(name, name), value) for name, value in named]


def members(kind: type) -> dict[str, int]:
    return {name: int(value) for name, value in vars(kind).items() if name.isupper() and not name.startswith("_")}


def numbers_by_kernel_name() -> list[tuple[str, int]]:
    kinds: list[tuple[type[IntEnum], str]] = [(abi.Opcode, "FUSE_"), (abi.NoticeCode, "FUSE_NOTIFY_")]
    return [(prefix + number.name, number.value) for kind, prefix in kinds for number in kind]


def ask_the_compiler(directory: Path) -> dict[str, int]:
    lines = ["#include <linux/fuse.h>", "#include <stdio.h>", "int main(void) {"]
    for kernel, _, since in STRUCTS.values():
        lines += since_minor(since, f'printf("{kernel} %zu\\n", sizeof(struct {kernel}));')
    for name, _ in flags_by_kernel_name():
        lines += [f"#ifdef {name}", show(name), "#endif"]
    for name, _ in numbers_by_kernel_name():
        lines += since_minor(SINCE.get(name, 0), show(name))
    source, program = directory / "abi.c", directory / "abi"
    source.write_text("\n".join([*lines, "return 0; }", ""]))
    subprocess.run(["gcc", "-w", "-o", program, source], check=True, timeout=60)
    output = subprocess.run([program], check=True, timeout=10, capture_output=True, text=True).stdout
    return {name: int(value) for name, value in (line.split() for line in output.splitlines())}


def show(name: str) -> str:
    # 1 << 31 is a negative int in C; all others are meant as they are.
    return f'printf("{name} %llu\\n", {name} < 0 ? (unsigned){name} + 0ULL : {name} + 0ULL);'


def since_minor(since: int, line: str) -> list[str]:
    return [f"#if FUSE_KERNEL_MINOR_VERSION >= {since}", line, "#endif"]
