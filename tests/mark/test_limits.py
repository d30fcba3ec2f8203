"""Which mount is ended where too much is to be remembered for all of them."""

from collections.abc import Hashable

from shiftfs.mark.limits import Limits, Size


class Mount:
    def __init__(self, limits: Limits, user: Hashable, **size: int) -> None:
        self.user = user
        self._limits = limits
        self._size = Size(**{"inodes": 0, "handles": 0, "names": 0, "waiting": 0, **size})
        limits.mounts.add(self)

    def size(self) -> Size:
        return self._size

    def end(self) -> None:
        self._limits.mounts.remove(self)


def limits_of(memory: int) -> tuple[Limits, list[str]]:
    said: list[str] = []
    return Limits(said.append, memory), said


def test_nobody_is_ended_while_there_is_room() -> None:
    limits, said = limits_of(3 << 20)
    mounts = {Mount(limits, "one", inodes=1000), Mount(limits, "other", inodes=2000)}
    limits.look(1.0)
    assert limits.mounts == mounts and said == []


def test_the_largest_mount_goes_of_who_has_most() -> None:
    """Though another has a larger one."""
    limits, said = limits_of(4 << 20)
    small = [Mount(limits, 1001, inodes=1000 + number) for number in range(4)]
    large = Mount(limits, 1002, inodes=1500, handles=10)
    limits.look(1.0)
    assert limits.mounts == {*small[:3], large}
    assert len(said) == 1 and "made by 1001" in said[0] and "1003 inodes" in said[0] and "4 MiB" in said[0]


def test_all_that_grows_counts() -> None:
    for what in ("inodes", "handles", "names", "waiting"):
        limits, said = limits_of(1 << 20)
        Mount(limits, 1, **{what: 5000})
        Mount(limits, 2)
        limits.look(1.0)
        assert [mount.user for mount in limits.mounts] == [2], what
        assert f"5000 {what}" in said[0]


def test_who_is_told_of_what_another_does_is_not_the_one_who_goes() -> None:
    """Though with that he has more; but what he does not take for long is his."""
    limits, said = limits_of(4 << 20)
    Mount(limits, "busy", inodes=2300)
    told = Mount(limits, "told", inodes=2200, waiting=400)
    limits.look(1.0)
    assert limits.mounts == {told} and "made by busy" in said[0]
    Mount(limits, "busy", inodes=2300)
    deaf = Mount(limits, "deaf", inodes=200, waiting=8000)
    limits.look(2.0)
    assert deaf not in limits.mounts and "made by deaf" in said[1]
