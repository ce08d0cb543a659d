"""Feed damaged files to every reader, and print what became of them: `python -m benchmarks.fuzz --count 10000`.

Each input is read or refused in one line, within 20 seconds and 2 GiB; anything else is a fault, and the exit status 1.
"""

from __future__ import annotations

import argparse
import sys
import time

from benchmarks.fuzz import checkpoints, pictures, results

READERS = {
    "pictures and folders": pictures.run,
    "files of weights, recipes, runs": checkpoints.run,
    "curves, results and jobs": results.run,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=10_000, help="inputs of each kind")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    num_faults = 0
    for name, run in READERS.items():
        began = time.monotonic()
        outcomes = run(given.count, given.seed)
        num_faults += len(outcomes.faults)
        print(f"{name}, {time.monotonic() - began:.0f} s\n{outcomes}", flush=True)
    sys.exit(num_faults > 0)


if __name__ == "__main__":
    main()
