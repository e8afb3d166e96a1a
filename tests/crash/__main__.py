"""The long run: `make crash`, or `python -m crash --kills 200` in the folder tests/."""

import argparse
import time

from crash.harness import run_crashes


def main() -> None:
    """Kill, compare, print what was killed."""
    parser = argparse.ArgumentParser(prog="python -m crash", description=__doc__)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--on-ray", type=int, default=0, help="kills within commands on Ray")
    parser.add_argument("--store", choices=["s3", "gs", "az"], default="s3")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    began = time.monotonic()
    kills = run_crashes(
        options.kills, seed=options.seed, num_on_ray=options.on_ray, store=options.store
    )
    print(
        f"{kills.total} kills, {kills.num_datasets} datasets, all byte for byte what an "
        f"uninterrupted run makes; {time.monotonic() - began:.0f} s"
    )
    for kind, count in kills.by_kind.most_common():
        print(f"  {count:4d} {kind}")


if __name__ == "__main__":
    main()
