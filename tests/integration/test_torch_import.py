"""torch's core before the rest of it, in processes of their own: an import happens once."""

from __future__ import annotations

import socket
import subprocess
import sys

from app.engine import startup
from app.engine.inbox import Inbox
from app.messages import FromEngine, StartEngine, ToEngine, WeightsLanded
from streaming.wire import Connection

PROLOGUE = "import sys; from app.engine import torch_import as t; "


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", PROLOGUE + code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_the_engine_can_be_imported_and_compute_at_the_core():
    """Tensors, modules and our decoder work while torch.export is not there; then the rest follows."""
    code = """
i = t.TorchImport(stops_at_core=True)
i.wait_for_core(on_gpu=False)
from app.engine import startup
from app.engine.sampling import sampler
import torch
with torch.inference_mode():
    assert torch.nn.functional.rms_norm(torch.ones(2, 4), (4,)).sum() > 0
print(i.is_whole, 'torch.export' in sys.modules)
i.go_on()
i.wait()
print(i.is_whole, 'torch.export' in sys.modules, torch.export.__name__)
"""
    assert run(code).splitlines() == ["False False", "True True torch.export"]


def test_a_torch_without_that_border_is_waited_for():
    """Where the first module beyond the core is never looked for, the core is there when all of torch is."""
    code = """
t._FIRST_BEYOND_THE_CORE = 'torch.no_such_module'
i = t.TorchImport(stops_at_core=True)
i.wait_for_core(on_gpu=False)
print(i.is_whole)
"""
    assert run(code) == "True"


def test_a_patient_import_does_not_stop():
    """An engine that follows one that died waits for everything."""
    code = """
i = t.TorchImport(stops_at_core=False)
i.wait_for_core(on_gpu=False)
print(i.is_whole)
"""
    assert run(code) == "True"


def test_a_missing_torch_is_an_error_where_it_is_waited_for():
    """ImportError on the engine's own thread, not a hang."""
    code = """
sys.modules['torch'] = None
i = t.TorchImport(stops_at_core=True)
try:
    i.wait_for_core(on_gpu=False)
except ImportError:
    print('told')
"""
    assert run(code) == "told"


def test_weights_that_have_landed_do_not_wait_for_the_rest_of_torch():
    """An import that never ends holds up nothing, as long as the bytes come."""

    class NeverWhole:
        is_whole = False

        def go_on(self):
            pass

    ours, theirs = socket.socketpair()
    with ours, theirs:
        engine = Connection(ours, ToEngine)
        inbox = Inbox(engine, (StartEngine(), []), wait_for_torch=lambda: None)
        Connection(theirs, FromEngine).send(WeightsLanded(warmup_token_ids=(7,)))
        startup._use_the_wait(inbox, None, NeverWhole(), None, engine)
        landed, _ = inbox.wait_for(WeightsLanded)
    assert landed.warmup_token_ids == (7,)
