"""`python -m adventures`: the command line."""

from adventures.cli import main

if __name__ == "__main__":
    main()
