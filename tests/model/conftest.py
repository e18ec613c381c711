from collections.abc import Iterator
from contextlib import nullcontext
from importlib.util import find_spec
from types import SimpleNamespace

import pytest
import torch

import model.kernels
from model.kernels import Kernels, load

torch.set_num_threads(1)  # tiny tensors, and the suite runs in parallel

ON_GPU = torch.cuda.is_available()


@pytest.fixture(scope="module")
def device() -> torch.device:
    return torch.device("cuda" if ON_GPU else "cpu")


@pytest.fixture(scope="module")
def kernels(device: torch.device) -> Iterator[Kernels]:
    """On a GPU as they are; elsewhere run by Triton's interpreter, on the CPU."""
    missing = [name for name in ("triton", "mamba_ssm", "einops") if find_spec(name) is None]
    if missing:
        pytest.skip(f"{', '.join(missing)} not installed: `make kernels` installs the kernels")
    with pytest.MonkeyPatch.context() as patch:
        if not ON_GPU:
            # What mamba-ssm asks of the device.
            patch.setattr(torch.cuda, "device", lambda index: nullcontext())
            found = SimpleNamespace(multi_processor_count=1)
            patch.setattr(torch.cuda, "get_device_properties", lambda device: found)
            _multiply_bfloat16(patch)
            patch.setattr(model.kernels, "SIZES", 1)  # each row takes the interpreter seconds
        yield load(device)


def _multiply_bfloat16(patch: pytest.MonkeyPatch) -> None:
    """The interpreter's products of matrices take bfloat16's bits for whole numbers."""
    from triton import language as tl
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle, _convert_float

    create_dot = InterpreterBuilder.create_dot

    def wide(handle: TensorHandle) -> TensorHandle:
        if handle.dtype.scalar != tl.bfloat16:
            return handle
        values = _convert_float(handle.data, tl.bfloat16, tl.float32, None).view("float32")
        return TensorHandle(values, tl.float32)

    def dot(self: object, a: TensorHandle, b: TensorHandle, *others: object) -> TensorHandle:
        return create_dot(self, wide(a), wide(b), *others)

    patch.setattr(InterpreterBuilder, "create_dot", dot)
