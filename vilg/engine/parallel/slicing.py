"""Parameters made late; and level p_g_os, where each rank keeps a slice of each and none ever holds the whole.

Paddle's own wrapper cuts up a model that is there, so that 10 B parameters would take 39.5 GB of every device before
the first slice. Here parameters that were made under ``paddle.LazyGuard`` are allocated one layer at a time, made equal
on all ranks, cast, cut, and freed (ZeRO, arXiv:1910.02054, stage 3). At the other levels they are allocated likewise,
so that half-precision weights are never there whole in float32.
"""
from collections.abc import Callable
from typing import Any

import paddle
import paddle.distributed as dist
from paddle import Tensor, nn
from paddle.distributed.fleet.meta_parallel.sharding import group_sharded_stage3
from paddle.distributed.fleet.meta_parallel.sharding.group_sharded_stage3 import GroupShardedStage3

from vilg.engine.parallel.half import cast_to_half


def allocate(module: nn.Layer, half: str | None, keep: Callable[[nn.Layer], None] | None) -> None:
    """Allocate late parameters, one layer at a time, let ``keep`` take from each layer what this rank keeps of it, and
    cast them to ``half`` (None: they stay float32)."""
    for layer in module.sublayers(include_self=True):
        late = [parameter for parameter in layer.parameters(include_sublayers=False) if is_late(parameter)]
        for parameter in late:
            parameter.initialize()
        if keep is not None:
            keep(layer)
        if late and half is not None:
            cast_to_half(layer, half)


def slice_parameters(module: nn.Layer, optimizer: paddle.optimizer.Optimizer, group: Any, replicas: Any,
                     half: str | None, **options: Any) -> GroupShardedStage3:
    """``module`` with its parameters cut into slices over ``group``; ``replicas`` is the group of this rank's replicas.

    ``half`` is the type that late parameters are cast to (None: they stay float32). ``options`` are Paddle's own.
    """
    # Parameters are gathered when their own layer is called; the rare layer that is used in other ways says so.
    whole = [id(layer) for layer in module.sublayers() if getattr(layer, "kept_whole", False)]
    # Paddle forgets the types of an earlier phase's parameters when it wraps another, and needs them to offload.
    known = dict(getattr(group_sharded_stage3, "param2dtype", {}))
    wrapped = _LayerByLayer(module, optimizer, half, group=group, dp_group=replicas, exclude_layer=whole,
                            device=paddle.get_device().split(":")[0], **options)
    vars(group_sharded_stage3).get("param2dtype", {}).update(known)
    return wrapped


class _LayerByLayer(GroupShardedStage3):
    def __init__(self, module: nn.Layer, optimizer: paddle.optimizer.Optimizer, half: str | None, **options: Any):
        self._late, self._half = {id(tensor) for tensor in module.parameters() if is_late(tensor)}, half
        super().__init__(module, optimizer, **options)

    @paddle.no_grad()
    def _sync_params_and_buffers(self) -> None:
        for parameter in self._layer.parameters():
            if id(parameter) not in self._late:
                self._share(parameter)

    def _flatten_layer_params(self, layer: nn.Layer, parameters: list[Tensor]) -> None:
        late = [parameter for parameter in parameters if id(parameter) in self._late]
        for parameter in late:
            parameter.initialize()
            with paddle.no_grad():
                self._share(parameter)
            self._late.discard(id(parameter))
        if late and self._half is not None:
            cast_to_half(layer, self._half)
        super()._flatten_layer_params(layer, parameters)

    def _share(self, parameter: Tensor) -> None:
        dist.broadcast(parameter, src=self._global_root_rank, group=self._group)
        if self._dp_group is not None and self._dp_group.nranks > 1:
            dist.broadcast(parameter, src=self._dp_group.ranks[0], group=self._dp_group)


def is_late(parameter: Tensor) -> bool:
    """Whether a parameter was made under ``paddle.LazyGuard`` and is not allocated yet."""
    return getattr(parameter, "_init_func", None) is not None and not parameter._is_initialized()
