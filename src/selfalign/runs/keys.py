"""Keys of millions of rows in little memory: has this one been there before?"""

import numpy as np

_RECENT = 65_536


class KeySet:
    """Remembers keys in eight bytes each, so that it can tell the first one that comes again.

    What is kept is a hash of 64 bits: with a probability of n² / 2⁶⁵, 3 in 10⁸ for a million keys, two of n
    different ones are taken for the same. Another process hashes differently.
    """

    def __init__(self) -> None:
        """Begin with no keys."""
        self._sorted = np.empty(0, dtype=np.int64)
        self._recent: set[int] = set()

    def __len__(self) -> int:
        """Return the number of keys."""
        return len(self._sorted) + len(self._recent)

    def add(self, key: str) -> bool:
        """Add a key and say whether it is new."""
        value = hash(key)
        place = self._sorted.searchsorted(value)
        if value in self._recent or (place < len(self._sorted) and self._sorted[place] == value):
            return False
        self._recent.add(value)
        if len(self._recent) == _RECENT:
            recent = np.fromiter(self._recent, dtype=np.int64, count=_RECENT)
            self._sorted = np.concatenate([self._sorted, recent])
            self._sorted.sort(kind="stable")
            self._recent.clear()
        return True
