"""Train a demo model: `python -m ldm_batch.demo.train text-to-image|super-resolution`.

A killed run goes on from its last checkpoint when the same command is given again.
"""

import argparse
from pathlib import Path

import torch

from ldm_batch.demo.train import super_resolution, text_to_image

MODELS = {
    "text-to-image": text_to_image.train_text_to_image,
    "super-resolution": super_resolution.train_super_resolution,
}


def main() -> None:
    """Read the command line and train, in one thread, so that a run is the same anywhere."""
    parser = argparse.ArgumentParser(prog="python -m ldm_batch.demo.train", description=__doc__)
    parser.add_argument("model", choices=MODELS)
    parser.add_argument("--work", type=Path, required=True, help="folder of checkpoints and log")
    parser.add_argument("--out", type=Path, required=True, help="folder of the trained pipeline")
    parser.add_argument("--start", type=Path, help="pipeline whose autoencoder is the start")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(arguments.seed)
    MODELS[arguments.model](
        arguments.work, arguments.out, start=arguments.start, seed=arguments.seed
    )


if __name__ == "__main__":
    main()
