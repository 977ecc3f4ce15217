"""`python -m medssl` is the `medssl` command."""

from .cli.app import entry

if __name__ == "__main__":
    entry()
