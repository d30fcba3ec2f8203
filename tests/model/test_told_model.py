"""What the kernel was told of names, against one plain dictionary: (directory, name) -> inode."""

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from shiftfs.inodes import Inode, InodeTable

FILES = range(10, 14)
DIRECTORIES = range(20, 23)
NAMES = st.sampled_from([b"a", b"b", b"c"])
ANY = st.integers(0, 100)


class Told(RuleBasedStateMachine):
    """Directories lie in the root; files anywhere, under several names."""

    def __init__(self) -> None:
        super().__init__()
        self.table = InodeTable((1, 2, 5, 4), "root")
        self.names: dict[tuple[Inode, bytes], Inode] = {}
        self.lookups: dict[Inode, int] = {}

    def _looked_up(self, number: int, kind: int) -> Inode:
        key = (1, number, 5, kind)
        inode = self.table.known(key) or self.table.add(key, None)
        inode.nlookup += 1
        self.lookups[inode] = self.lookups.get(inode, 0) + 1
        return inode

    def _directory(self, choice: int) -> Inode:
        known = [inode for inode in self.lookups if inode.is_directory]
        return [self.table.root, *known][choice % (len(known) + 1)]

    @rule(number=st.sampled_from(DIRECTORIES), name=NAMES)
    def look_up_a_directory(self, number: int, name: bytes) -> None:
        inode = self._looked_up(number, 4)
        for place in [place for place, at in self.names.items() if at is inode]:
            del self.names[place]
        self.table.tell(self.table.root, name, inode)
        self.names[self.table.root, name] = inode

    @rule(number=st.sampled_from(FILES), choice=ANY, name=NAMES)
    def look_up_a_file(self, number: int, choice: int, name: bytes) -> None:
        parent = self._directory(choice)
        inode = self._looked_up(number, 8)
        self.table.tell(parent, name, inode)
        self.names[parent, name] = inode

    @rule(choice=ANY, name=NAMES)
    def a_name_goes(self, choice: int, name: bytes) -> None:
        parent = self._directory(choice)
        assert self.table.untell(parent, name) is self.names.pop((parent, name), None)

    @rule(choice=ANY, name=NAMES, other=ANY, new_name=NAMES, exchange=st.booleans())
    def rename(self, choice: int, name: bytes, other: int, new_name: bytes, exchange: bool) -> None:
        parent, to = self._directory(choice), self._directory(other)
        moved, replaced = self.names.get((parent, name)), self.names.get((to, new_name))
        directories = [inode for inode in (moved, replaced) if inode is not None and inode.is_directory]
        if moved is None or moved is replaced or (directories and {parent, to} != {self.table.root}):
            return
        self.table.renamed(parent, name, to, new_name, exchange)
        del self.names[parent, name]
        self.names[to, new_name] = moved
        if exchange and replaced is not None:
            self.names[parent, name] = replaced

    @rule(choice=ANY, count=st.integers(1, 3))
    def forget(self, choice: int, count: int) -> None:
        known = list(self.lookups)
        if not known:
            return
        inode = known[choice % len(known)]
        self.lookups[inode] -= min(count, self.lookups[inode])
        dropped = self.table.forget(inode.nodeid, count if inode.nlookup >= count else inode.nlookup)
        for gone in dropped:
            assert self.lookups.pop(gone) == 0, "the kernel still knows it"
            for place in [place for place, at in self.names.items() if at is gone]:
                del self.names[place]
            assert not [name for parent, name in self.names if parent is gone], "something told of it is known"

    @invariant()
    def the_same_is_told(self) -> None:
        told = {}
        for parent in [self.table.root, *(inode for inode in self.lookups if inode.is_directory)]:
            for name, inode in (parent.children or {}).items():
                told[parent, name] = inode
        assert told == self.names

    @invariant()
    def each_inode_knows_a_place_of_its_own(self) -> None:
        for inode in self.lookups:
            places = [place for place, at in self.names.items() if at is inode]
            if places:
                assert inode.parent is not None and (inode.parent, inode.name) in places
            else:
                assert inode.parent is None

    @invariant()
    def nothing_stays_for_nobody(self) -> None:
        for inode, lookups in self.lookups.items():
            if lookups == 0:
                waiting = inode in self.table._idle  # looked at with the next forget
                assert waiting or inode.children, "neither the kernel nor anything in it needs it"


TestTold = Told.TestCase
