"""A child process that reads nothing: `python -m tests.unit.sleeper`."""

import time

if __name__ == "__main__":
    time.sleep(60)
