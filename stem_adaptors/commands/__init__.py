"""Commands that train or that need both halves of the program."""
