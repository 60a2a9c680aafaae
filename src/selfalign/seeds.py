"""Random seeds, derived from names so that they depend on nothing that came before."""

import hashlib
import json


def derive_seed(root: int, *names: str | int) -> int:
    """Return a seed in [0, 2**63) for the item that the names lead to.

    Args:
        root: The recipe's seed.
        names: Stage, iteration, item and so on; any difference gives an unrelated seed.
    """
    digest = hashlib.sha256(json.dumps([root, *names]).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
