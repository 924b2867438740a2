# SPDX-License-Identifier: Apache-2.0
"""What a server that is taken away costs: one JSON line per outage, on private servers with load over three cells.

Each victim (a cell's broker, a cell's PostgreSQL, a cell's MariaDB, the API database) is killed, frozen, and replaced
by what takes connections and never answers; ``tests/faults`` has what is asserted of the same outages.

================== ===============================================================================================
``sick``           the cell that suffers; ``unmapped`` stands for requests for instances that have no mapping
``lost``           how many requests the other cells have lost
``healthy_ms``     50th and 99th percentile of the time of a request, before the fault and in it, in other cells
``sick_ms``        the same in the cell that suffers
``sick_answers``   how many answers of each status it gave
``longest_sick_s`` how long the longest of them took
``recovery_s``     how long after the server answered again all was well
``casts``          how many were acknowledged, how many failed with "unknown" and with "no": whether they were sent
``waiting``        how many had been acknowledged and not yet taken when a broker was taken away
``arrived``        how many of all casts have arrived; ``duplicated``: how many more than once
================== ===============================================================================================
"""

from __future__ import annotations

import itertools
import json
import logging
import sys

from tests import servers
from tests.faults.rig import SICK, Rig
from tests.faults.scenario import FAULTS, Outage


def main() -> int:
    """Have all of it happen."""
    # what the outages have logged is known
    logging.disable()
    try:
        with Rig() as rig:
            for victim, fault in itertools.product(SICK, FAULTS):
                print(json.dumps(Outage(rig, victim, fault).figures()), flush=True)
    except servers.ServerMissing as missing:
        print(missing, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
