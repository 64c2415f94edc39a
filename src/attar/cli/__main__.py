"""`python -m attar.cli` is `attar`."""

from attar.cli import main

if __name__ == "__main__":
    main()
