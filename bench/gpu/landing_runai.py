"""Run:ai's Model Streamer alone: `python -m bench.gpu.landing_runai URI DEVICE SHARD...`; weights stay on the device.

Concurrency comes from its environment variables. Counted from exec, so with its import of torch; its transfer is
counted from the call that starts it.
"""

from __future__ import annotations

import sys
import time
from typing import Any

from bench.gpu.landing_curve import Arrival, figures, tell
from streaming.clock import boottime_s, exec_time_s


def main(uri: str, device: str, shards: list[str]) -> dict[str, Any]:
    """Stream every shard and keep every tensor."""
    import torch
    from runai_model_streamer import SafetensorsStreamer

    torch.empty(1, device=device)
    arrivals, kept = [], {}
    planned_s = boottime_s()
    with SafetensorsStreamer() as streamer:
        streamer.stream_files([f"{uri}/{shard}" for shard in shards], device=device)
        for name, tensor in streamer.get_tensors():
            kept[name] = tensor
            arrivals.append(Arrival(boottime_s(), tensor.nbytes))
        if device != "cpu":
            torch.cuda.synchronize()
        landed_s = boottime_s()
    return figures(
        exec_s=exec_time_s(),
        planned_s=planned_s,
        landed_s=landed_s,
        arrivals=arrivals,
        lanes=1,
        cpu_s=time.process_time(),
    )


if __name__ == "__main__":
    tell(main(sys.argv[1], sys.argv[2], sys.argv[3:]))
