"""Run:ai's Model Streamer against the server of `bench.stragglers`, by its S3 reader.

`PYTHON bench/stragglers_runai.py URI...`, in an environment of its own (runai-model-streamer, runai-model-streamer-s3): takes URIs of
shards, prints seconds from the call that starts the transfer to the last tensor. Knows none of our modules.
"""

from __future__ import annotations

import sys
import time

from runai_model_streamer import SafetensorsStreamer


def main(uris: list[str]) -> None:
    """Stream every shard into host memory."""
    start_s = time.monotonic()
    with SafetensorsStreamer() as streamer:
        streamer.stream_files(uris, device="cpu")
        for _ in streamer.get_tensors():
            pass
    print(time.monotonic() - start_s)


if __name__ == "__main__":
    main(sys.argv[1:])
