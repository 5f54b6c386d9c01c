"""Lets Paddle's group sharding run on the CPU over gloo, for tests only.

Paddle's stage-2 and stage-3 code asks for a GPU-like device and copies tensors to and from it. Here the CPU answers as
if it were such a device; where a "copy" between device and host would alias one tensor, a real copy is made. What stays
untested: anything about streams, and stage-2 offload, which insists on float16 parameters.
"""
import paddle
from paddle.base import core
from paddle.distributed.fleet.meta_parallel.sharding import group_sharded_stage3, group_sharded_storage

ALIGNMENT_BYTES = 256


class _Place:
    """Stands for ``CustomPlace(device, number)``: the host."""

    def __new__(cls, device: str, number: int = 0):
        return paddle.CPUPlace()


def install() -> None:
    """Replace the look-ups. Call it once, after the process group exists and before anything is sharded."""
    for module in (core, paddle.device):
        module.get_all_custom_device_type = lambda: ["cpu"]
    core.libpaddle._get_device_min_chunk_size = lambda device: ALIGNMENT_BYTES
    core.CustomPlace = paddle.CustomPlace = _Place
    paddle.get_device = lambda: "cpu:0"
    add_rank_params = group_sharded_storage.ParamStorage.add_rank_params

    def stay_on_host(self, parameters, alignment, convert_gpu=True):
        return add_rank_params(self, parameters, alignment, False)

    group_sharded_storage.ParamStorage.add_rank_params = stay_on_host
    group_sharded_stage3._device2cpu = _copy_to_host


def _copy_to_host(tensor: paddle.Tensor, convert_dtype: bool = False) -> paddle.Tensor:
    copied = tensor.astype("float32") if convert_dtype and tensor.dtype != paddle.float32 else tensor.clone()
    copied = copied.detach()
    tensor._clear_data()
    return copied
