"""What the mounts of one process have in common, and how much of it each may take.

Nobody has more of it than are left: however many take all that they can get, each new one may have as much as any of
them. Loop thread.
"""


class Common:
    """There are `most` of it. The `fewest` that a mount may always have need not be among these."""

    def __init__(self, most: int, fewest: int) -> None:
        self.most = most
        self.fewest = fewest
        self.taken = 0

    def admits(self, own: int) -> bool:
        """May who has this many take one more?"""
        return own < self.fewest or own < self.most - self.taken


class Share:
    """What one mount has of it."""

    def __init__(self, common: Common) -> None:
        self._common = common
        self.taken = 0

    @property
    def has_room(self) -> bool:
        return self._common.admits(self.taken)

    def take(self) -> None:
        self.taken += 1
        self._common.taken += 1

    def give_back(self) -> None:
        self.taken -= 1
        self._common.taken -= 1

    def leave(self) -> None:
        """All of it."""
        self._common.taken -= self.taken
        self.taken = 0


def alone(most: int) -> Share:
    """Of what nobody else has."""
    return Share(Common(0, most))
