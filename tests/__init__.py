"""The tests; a package because one of theirs is also a command: `python -m tests.hub.local_hub`."""
