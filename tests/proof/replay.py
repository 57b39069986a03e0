"""Run one seed again, as a failure of the proofs names it.

python tests/proof/replay.py ledger 4711 --backend sqlite
python tests/proof/replay.py simulation 4711 --log
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path


def main() -> None:
    sys.path.insert(0, str(Path(__file__).parents[2]))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["ledger", "simulation"])
    parser.add_argument("seed", type=int)
    parser.add_argument("--backend", choices=["sqlite", "memory"], default="sqlite")
    parser.add_argument("--log", action="store_true", help="show what happened, step by step")
    asked = parser.parse_args()
    if asked.what == "ledger":
        from backends import SQLITE, memory
        from dice import play

        play(SQLITE if asked.backend == "sqlite" else memory(), asked.seed)
    else:
        from simulation import simulate

        simulate(asked.seed, log=print if asked.log else None)
    sys.stdout.write(f"seed={asked.seed}: nothing wrong\n")


if __name__ == "__main__":
    main()
