"""Torch tensors on a real GPU: nothing is copied, and everything is in the order of torch's current stream."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from coilc.runtime import InputError, Model

from .conftest import real

pytestmark = [pytest.mark.gpu, real]
CLOSE = {"rtol": 1e-4, "atol": 1e-5}


@pytest.mark.parametrize("side", [False, True], ids=["default stream", "another stream"])
def test_results_are_there_in_the_order_of_the_stream(
    model: Model, x: np.ndarray, expected: np.ndarray, side: bool
) -> None:
    stream = torch.cuda.Stream() if side else torch.cuda.default_stream()
    with torch.cuda.stream(stream):
        for _ in range(6):
            given = torch.from_numpy(x).cuda(non_blocking=True) * 2 / 2
            found = model(x=given)["out"] + 1
            assert found.is_cuda
            np.testing.assert_allclose(found.cpu().numpy() - 1, expected, **CLOSE)


def test_streams_may_change_between_the_calls_of_a_session(model: Model, x: np.ndarray, expected: np.ndarray) -> None:
    given, session, found = torch.from_numpy(x).cuda(), model.session(), []
    torch.cuda.synchronize()
    for t in range(20):
        with torch.cuda.stream(torch.cuda.Stream()):
            found.append(session.step(x=given[:, t : t + 1])["out"])
    torch.cuda.synchronize()
    np.testing.assert_allclose(torch.cat(found, 1).cpu().numpy(), expected, **CLOSE)


def test_layouts_and_alignments(model: Model, x: np.ndarray, expected: np.ndarray) -> None:
    turned = torch.from_numpy(x).cuda().transpose(0, 1).contiguous().transpose(0, 1)
    shifted = torch.empty(x.size + 1, device="cuda")[1:].view(x.shape).copy_(turned)
    for given in (turned, shifted):
        np.testing.assert_allclose(model(x=given)["out"].cpu().numpy(), expected, **CLOSE)


def test_hosts_and_devices_mix(model: Model, x: np.ndarray, expected: np.ndarray) -> None:
    session = model.session()
    first = session.prefill(x=torch.from_numpy(x[:, :9]).cuda())["out"].cpu().numpy()
    np.testing.assert_allclose(np.concatenate([first, session.prefill(x=x[:, 9:])["out"]], 1), expected, **CLOSE)


def test_another_dtype_is_a_sentence(model: Model, x: np.ndarray) -> None:
    with pytest.raises(
        InputError, match=r"input 'x' has dtype torch.float64, the model takes f32\[B, L, 8\]: convert it"
    ):
        model(x=torch.from_numpy(x).cuda().double())


FAULT = """
import ctypes, sys
import numpy as np
from coilc.runtime import load
from coilc.runtime.library import NativeSession
driver, context, address = ctypes.CDLL("libcuda.so.1"), ctypes.c_void_p(), ctypes.c_uint64()
model, other = load(sys.argv[1]), load(sys.argv[1])
expected = model(x=np.ones((2, 5, 8), np.float32))["out"]
assert not driver.cuDevicePrimaryCtxRetain(ctypes.byref(context), 0) and not driver.cuCtxPushCurrent_v2(context)
session, entry = NativeSession(model._native, 1), model._entries["main"]
session.bind(entry.index, (4096, 128))
given, out = np.zeros((4096, 128, 8), np.float32), np.empty((4096, 128, 8), np.float32)
outputs = [out.ctypes.data] + [0] * (len(entry.outputs) - 1)
session.run(entry.index, [given.ctypes.data], outputs)  # reserves everything, so that nothing lies behind what comes now
assert not driver.cuMemAlloc_v2(ctypes.byref(address), ctypes.c_size_t(2 << 20))
for attempt in range(3):
    try:
        session.run(entry.index, [address.value + (2 << 20) - 16], outputs)  # its end: most of the input is not there
        print("nothing happened")
    except Exception as error:
        print(error)
try:
    other(x=np.ones((2, 5, 8), np.float32))
except Exception as error:
    print(error)
driver.cuCtxPopCurrent_v2(ctypes.byref(context)), driver.cuDevicePrimaryCtxRelease_v2(0)
del model, other, session
try:
    print("again", np.array_equal(load(sys.argv[1])(x=np.ones((2, 5, 8), np.float32))["out"], expected))
except Exception as error:
    print("again", error)
"""


def test_a_fault_is_one_sentence_and_the_process_goes_on(path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", FAULT, str(path)], capture_output=True, text=True, timeout=120)
    print(done.stdout)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert all("its context is lost to this process" in line for line in lines[:4]), done.stdout
    assert lines[4].startswith("again ")
