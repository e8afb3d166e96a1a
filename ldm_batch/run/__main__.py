"""`python -m ldm_batch.run` is `python -m ldm_batch run`."""

from ldm_batch.run.command import main

if __name__ == "__main__":
    main()
