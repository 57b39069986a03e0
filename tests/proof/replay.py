"""Run one seed again, as a failure of the proofs names it.

python tests/proof/replay.py ledger 4711 --backend postgres
python tests/proof/replay.py simulation 4711 --log
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path


def main() -> None:
    sys.path[:0] = [str(Path(__file__).parents[2]), str(Path(__file__).parents[1])]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["ledger", "simulation"])
    parser.add_argument("seed", type=int)
    parser.add_argument("--backend", choices=["sqlite", "memory", "postgres"], default="sqlite")
    parser.add_argument("--log", action="store_true", help="show what happened, step by step")
    asked = parser.parse_args()
    if asked.what == "ledger":
        from backends import SQLITE, PostgresBackend, memory
        from dice import play
        from ledger_machine import the_loop
        from services import run_postgres

        if asked.backend == "postgres":
            with run_postgres() as server:
                postgres = PostgresBackend(server.url)
                try:
                    play(postgres.backend, asked.seed)
                finally:
                    the_loop().run_until_complete(postgres.stop())
        else:
            play(SQLITE if asked.backend == "sqlite" else memory(), asked.seed)
    else:
        from simulation import simulate

        simulate(asked.seed, log=print if asked.log else None)
    sys.stdout.write(f"seed={asked.seed}: nothing wrong\n")


if __name__ == "__main__":
    main()
