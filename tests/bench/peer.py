"""A peer that fails: a bare responder that does not serve increments, or one that ends during a load with exit status 7."""

from __future__ import annotations

import os
import sys

from bench.load import responder
from bench.load.workload import FUNCTIONS

#: More reads than it takes to find out if the peer is ready.
READS_MAX = 20


class Dying(responder.Responder):
    """A responder that ends after this number of reads."""

    reads = 0

    def receive(self, read: bytes) -> None:
        self.reads += 1
        if self.reads > READS_MAX:
            os.write(sys.stderr.fileno(), b"out of memory\n")
            os._exit(7)
        super().receive(read)


def main(kind: str) -> int:
    """Serve as the host data on standard input says."""
    if kind == "dying":
        responder.Responder = Dying  # type: ignore[misc]
    else:
        assert isinstance(FUNCTIONS, dict)
        del FUNCTIONS["increment"]
    return responder.main()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
