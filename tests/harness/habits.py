"""What people do to a directory with their programs, each in several steps."""

import os
import shutil
from pathlib import Path

from harness.calls import opened
from harness.commands import run


def atomic_save(root: Path, outside: Path, first_id: int) -> None:
    with (root / ".file.tmp").open("wb") as file:
        file.write(b"saved")
        file.flush()
        os.fsync(file.fileno())
    (root / ".file.tmp").rename(root / "file")


def save_with_backup(root: Path, outside: Path, first_id: int) -> None:
    (root / "file").rename(root / "file~")
    (root / "file").write_bytes(b"saved")


def rotate_log(root: Path, outside: Path, first_id: int) -> None:
    (root / "log").rename(root / "log.1")
    with opened(root / "log", os.O_CREAT | os.O_EXCL | os.O_WRONLY) as fd:
        os.write(fd, b"two\n")


def copy_and_truncate_log(root: Path, outside: Path, first_id: int) -> None:
    shutil.copyfile(root / "log", root / "log.1")
    with opened(root / "log", os.O_WRONLY | os.O_TRUNC) as fd:
        os.write(fd, b"new\n")


def delete_and_recreate(root: Path, outside: Path, first_id: int) -> None:
    (root / "file").unlink()
    (root / "file").write_bytes(b"another")


def directory_becomes_file(root: Path, outside: Path, first_id: int) -> None:
    (root / "empty").rmdir()
    (root / "empty").write_bytes(b"a file")


def directory_becomes_file_and_back(root: Path, outside: Path, first_id: int) -> None:
    (root / "empty").rmdir()
    (root / "empty").write_bytes(b"a file")
    (root / "empty").unlink()
    (root / "empty").mkdir()


def file_becomes_directory(root: Path, outside: Path, first_id: int) -> None:
    (root / "file").unlink()
    (root / "file").mkdir()
    (root / "file/in").write_bytes(b"")


def swap_symlink(root: Path, outside: Path, first_id: int) -> None:
    (root / "link.tmp").symlink_to("other")
    (root / "link.tmp").rename(root / "link")


def mkdir_p(root: Path, outside: Path, first_id: int) -> None:
    (root / "dir/sub/a/b/c").mkdir(parents=True)
    (root / "dir/sub/a/b/c/file").write_bytes(b"deep")
    (root / "dir/sub/a/file").write_bytes(b"")


def cp_a(root: Path, outside: Path, first_id: int) -> None:
    run(["cp", "-a", root / "dir", root / "new"])


def install(root: Path, outside: Path, first_id: int) -> None:
    run(["install", "-m", "755", outside / "came", root / "dir/installed"])


def sed_in_place(root: Path, outside: Path, first_id: int) -> None:
    (root / "dir/sub/deep").chmod(0o640)
    os.replace(_written(root / "dir/sub/sedXXXXXX", b"DEEP"), root / "dir/sub/deep")


def _written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    path.chmod(0o640)
    return path


HABITS = (
    atomic_save,
    save_with_backup,
    rotate_log,
    copy_and_truncate_log,
    delete_and_recreate,
    directory_becomes_file,
    directory_becomes_file_and_back,
    file_becomes_directory,
    swap_symlink,
    mkdir_p,
    cp_a,
    install,
    sed_in_place,
)
