"""`make bench`: every benchmark, one after the other."""

from __future__ import annotations

from bench import cold_start, loader_memory

if __name__ == "__main__":
    loader_memory.main()
    cold_start.main()
