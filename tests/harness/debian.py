"""Root filesystems to make images of, as tar archives: a Debian, and one of busybox alone.

The Debian is what debootstrap makes, of the suite that this machine runs and from where this machine's apt takes it.
It is made once, and kept in the directory where `make` keeps what it makes. Nothing that uses it needs a network: the
packages that tests install in it lie inside, in PACKAGES_PLACE, and its apt knows no other source.

Needs root, and once a network. What is made stays for other runs; what it was made of goes, also on failure.
"""

import hashlib
import os
import platform
import tarfile
import tempfile
from io import BytesIO
from pathlib import Path

from harness.commands import Argument, CommandFailed, open_directory, run
from harness.machine import CACHE, alone

# Of making it, and of waiting while another run makes it.
MAKING_LIMIT = 600.0

PACKAGES_PLACE = "/srv/packages"
PACKAGES = ("git", "iputils-ping", "libcap2-bin", "python3")
"""What `apt-get update && apt-get install` finds in it, with all that these depend on."""

# $1 is the root, $2 its suite, $3 the mirror, $4 the archive, the rest the packages. Device nodes are left out, as from
# the images that people publish.
_MAKE = f"""
root=$1 suite=$2 mirror=$3 archive=$4; shift 4
debootstrap --variant=minbase "$suite" "$root" "$mirror"
apt-config dump Acquire >"$root/etc/apt/apt.conf.d/host"
chroot "$root" apt-get -q update
chroot "$root" apt-get -q install --yes --no-install-recommends --download-only "$@"
rm "$root/etc/apt/apt.conf.d/host"
mkdir "$root{PACKAGES_PLACE}"
mv "$root"/var/cache/apt/archives/*.deb "$root{PACKAGES_PLACE}"
(cd "$root{PACKAGES_PLACE}" && dpkg-scanpackages --multiversion . >Packages)
echo 'deb [trusted=yes] file:{PACKAGES_PLACE} ./' >"$root/etc/apt/sources.list"
rm -rf "$root"/var/lib/apt/lists/* "$root"/var/cache/apt/*.bin "$root"/var/log/* "$root"/etc/resolv.conf
tar -C "$root" --numeric-owner --one-file-system --exclude='./dev/*' -cf "$archive" .
"""


def debian_tar() -> Path:
    """An archive of Debian's minimal system. Who asks first makes it, which takes a minute or two; who asks meanwhile,
    in another process, waits. CommandFailed where the network or the mirror fails."""
    suite = platform.freedesktop_os_release()["VERSION_CODENAME"]
    recipe = hashlib.sha256(repr((_MAKE, PACKAGES)).encode()).hexdigest()[:12]
    path = CACHE / f"debian-{suite}-{platform.machine()}-{recipe}.tar"
    with alone(path.with_suffix(".lock")):
        if not path.exists():
            _make_debian(suite, path)
    return path


def _make_debian(suite: str, path: Path) -> None:
    root = open_directory("debian-")
    # Published by a rename, so that a run that is killed leaves no half of one behind that looks whole.
    with tempfile.TemporaryDirectory(prefix="debian-", dir=path.parent) as making:
        archive = Path(making, "tar")
        try:
            # What debootstrap mounts and starts goes with the namespaces that it does so in.
            apart = ["unshare", "--mount", "--propagation=private", "--pid", "--fork", "--kill-child"]
            args: list[Argument] = [root, suite, _mirror(suite), archive, *PACKAGES]
            run([*apart, "sh", "-euc", _MAKE, "sh", *args], limit=MAKING_LIMIT, env=_english())
        finally:
            run(["rm", "-rf", "--one-file-system", root])
        archive.rename(path)


def _mirror(suite: str) -> str:
    """Where this machine's apt takes a suite from."""
    ask = ["apt-get", "indextargets", "--format", "$(CODENAME) $(REPO_URI)", "Created-By: Packages"]
    if not run(ask).stdout:  # it knows those alone whose lists it has
        run(["apt-get", "-q", "update"], limit=MAKING_LIMIT)
    for line in run(ask).stdout.splitlines():
        codename, _, uri = line.partition(" ")
        if codename == suite:
            return uri
    raise CommandFailed(f"apt has no source of {suite}")


def _english() -> dict[str, str]:
    path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    return {**os.environ, "LC_ALL": "C", "DEBIAN_FRONTEND": "noninteractive", "PATH": path}


_DIRECTORIES = {"bin": 0o755, "dev": 0o755, "etc": 0o755, "home": 0o755, "proc": 0o755, "root": 0o700, "srv": 0o755}
_DIRECTORIES |= {"sys": 0o755, "tmp": 0o1777, "var": 0o755}
_FILES = {
    "etc/passwd": "root:x:0:0::/root:/bin/sh\nann:x:1001:1001::/home:/bin/sh\n",
    "etc/group": "root:x:0:\nann:x:1001:\n",
}


def busybox_tar(path: Path, files: dict[str, bytes] | None = None) -> Path:
    """An archive at `path` of a root filesystem of busybox-static, with `files` (name: content) besides; at
    once. Its `su` is set-id, and user ann's id is 1001."""
    applets = sorted({*run(["busybox", "--list"]).stdout.split()} - {"busybox", "su"})
    with tarfile.open(path, "w") as archive:
        for name, mode in _DIRECTORIES.items():
            _add(archive, name, mode, kind=tarfile.DIRTYPE)
        for name, mode in {"bin/busybox": 0o755, "bin/su": 0o4755}.items():
            _add(archive, name, mode, Path("/bin/busybox").read_bytes())
        for applet in applets:
            _add(archive, f"bin/{applet}", 0o777, kind=tarfile.SYMTYPE, target="busybox")
        for name, text in _FILES.items():
            _add(archive, name, 0o644, text.encode())
        for name, content in (files or {}).items():
            _add(archive, name, 0o644, content)
    return path


def _add(
    archive: tarfile.TarFile,
    name: str,
    mode: int,
    content: bytes = b"",
    kind: bytes = tarfile.REGTYPE,
    target: str = "",
) -> None:
    info = tarfile.TarInfo(name)
    info.mode, info.type, info.linkname, info.size = mode, kind, target, len(content)
    archive.addfile(info, BytesIO(content))
