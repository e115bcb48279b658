"""`make bench`: every benchmark, one after the other."""

from __future__ import annotations

from bench import cold_start

if __name__ == "__main__":
    cold_start.main()
