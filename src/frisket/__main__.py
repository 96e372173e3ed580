"""`python -m frisket VERB …` is the same as `frisket VERB …`."""

from frisket.cli.main import entry

if __name__ == "__main__":
    entry()
