"""--device and CUDA_VISIBLE_DEVICES: what runs where, and what loader and engine see."""

from __future__ import annotations

import pytest

from app.errors import UsageError
from app.settings import device
from app.settings.device import Device, choose_device


@pytest.mark.parametrize(
    ("wish", "visible", "chosen"),
    [
        ("cpu", "0,1", Device("cpu", "")),
        ("cuda", None, Device("cuda", "0")),
        ("cuda:3", None, Device("cuda", "3")),
        ("cuda", "2,5", Device("cuda", "2")),
        ("cuda:1", "2, 5", Device("cuda", "5")),
        ("cuda:1", "MIG-a,GPU-b", Device("cuda", "GPU-b")),
    ],
)
def test_processes_see_the_chosen_gpu_only(wish, visible, chosen):
    """N counts among the visible GPUs; a CPU server shows none."""
    environ = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
    assert choose_device(wish, environ) == chosen


@pytest.mark.parametrize("visible", [None, "0", "", "-1"])
@pytest.mark.parametrize("has_driver", [True, False])
def test_auto_is_the_gpu_where_one_can_be_seen(monkeypatch, tmp_path, visible, has_driver):
    """A driver and a GPU that is not hidden make a CUDA server, anything less a CPU server."""
    sign = tmp_path / "nvidiactl"
    monkeypatch.setattr(device, "_DRIVER_SIGNS", (str(sign),))
    if has_driver:
        sign.touch()
    environ = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
    expected = "cuda" if has_driver and visible in (None, "0") else "cpu"
    assert choose_device("auto", environ).kind == expected


def test_a_gpu_that_is_not_visible_cannot_be_chosen():
    """The error says how many there are."""
    with pytest.raises(UsageError, match="shows 0 GPUs"):
        choose_device("cuda", {"CUDA_VISIBLE_DEVICES": "-1"})
