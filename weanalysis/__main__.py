"""`python -m weanalysis` is the `weanalysis` command."""

from weanalysis.cli import main

if __name__ == "__main__":
    main()
