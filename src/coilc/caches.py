"""transformers' cache objects as arguments of ``coilc.export``.

The cache is what the states are: while the model is traced, a dict of tensors takes its place outside of the model.
Tensors that the model updates in place are states already (``frontend/buffer_states.py``); those that it replaces by longer
ones come back as outputs, and are paired with the inputs that they follow.

Several tokens at once are another matter where layers have recurrent states. With a filled cache some models (Mamba and
Jamba are such) start them anew, so a trace of that would not continue a sequence. Such a model is traced without its cache:
with an empty one it computes the same, and its states are found in what it computes.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from .frontend.torch_export import evaluating
from .ir import InputError

GROWING = ("keys", "values")  # of layers without a limit: [B, H, past, E]
Kwargs = dict[str, Any]


@dataclass
class Opened:
    """A call whose caches are dicts of tensors.

    Attributes:
        states: inputs, and the outputs that follow them.
    """

    kwargs: Kwargs
    dynamic_shapes: Any
    states: dict[str, str] = field(default_factory=dict)


def is_cache(value: Any) -> bool:
    library = sys.modules.get("transformers.cache_utils")
    return library is not None and isinstance(value, library.Cache)


@contextmanager
def opened(
    module: torch.nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], dynamic_shapes: Any
) -> Iterator[Opened]:
    """The call to trace, while ``module`` takes and returns dicts of tensors for caches.

    Without caches, nothing happens. What a cache holds is an example, of a call's results if it is empty: a sequence starts
    with an empty one.

    Raises:
        InputError: a cache by position, with dynamic shapes of its own, or of a kind that is not made of tensors alone.
    """
    caches = {name: value for name, value in kwargs.items() if is_cache(value)}
    call = Opened(dict(kwargs), dynamic_shapes)
    if any(map(is_cache, args)):
        raise InputError("pass the cache by its name, not by position")
    if not caches:
        yield call
        return
    shapes = _by_name(dynamic_shapes, caches)
    if any(map(_is_longer, shapes.values())) and not all(map(_attends, caches.values())):
        call.kwargs = without(kwargs, caches)
        yield call
        return
    call.kwargs = {**kwargs, "use_cache": True}
    filled = _filled(module, args, call.kwargs, caches)
    for name, cache in filled.items():
        held = dict(_tensors(cache))
        call.kwargs[name] = held
        shapes[name] = {leaf: _axes(leaf, cache, _batch(shapes)) for leaf in held}
        call.states |= {f"{name}_{leaf}": f"{name}.{leaf}" for leaf in held if _grows(leaf, cache)}
    call.dynamic_shapes = shapes
    with _closed_inside(module, filled):
        yield call


@contextmanager
def _closed_inside(module: torch.nn.Module, caches: Mapping[str, Any]) -> Iterator[None]:
    inside: Kwargs = {}
    given: Kwargs = {}

    def enter(_: Any, args: Any, kwargs: Kwargs) -> tuple[Any, Kwargs]:
        given.update({name: kwargs[name] for name in caches})
        inside.update({name: _with_tensors(cache, kwargs[name]) for name, cache in caches.items()})
        return args, {**kwargs, **inside}

    def leave(_: Any, __: Any, ___: Any, result: Any) -> dict[str, Any]:
        if not isinstance(result, Mapping):
            raise InputError("a model that takes a cache must return names with its results; pass return_dict=True")
        rest = {name: value for name, value in result.items() if not is_cache(value)}
        return rest | {
            name: {leaf: x for leaf, x in _tensors(cache) if x is not given[name].get(leaf)}
            for name, cache in inside.items()
        }

    with ExitStack() as hooks:
        hooks.enter_context(module.register_forward_pre_hook(enter, with_kwargs=True))
        hooks.enter_context(module.register_forward_hook(leave, with_kwargs=True))
        yield


def _filled(module: torch.nn.Module, args: tuple[Any, ...], kwargs: Kwargs, caches: Mapping[str, Any]) -> Kwargs:
    """Copies of the caches with all of their tensors; those of a call where there are none yet."""
    given = {name: _unlimited(cache) for name, cache in caches.items()}
    after = copy.deepcopy(given)
    with evaluating(module, kwargs), torch.no_grad():
        module(*args, **{**kwargs, **after})
    return {
        name: given[name] if tensor_names(given[name]) == tensor_names(cache) else cache
        for name, cache in after.items()
    }


def without(kwargs: Mapping[str, Any], caches: Collection[str]) -> Kwargs:
    """The arguments of a call that has no such caches and makes none."""
    return {name: value for name, value in kwargs.items() if name not in {*caches, "use_cache"}}


def _attends(cache: Any) -> bool:
    """Whether all that a cache keeps, now or later, is keys and values by position."""
    library = sys.modules["transformers.cache_utils"]
    recurrent, counting = library.LinearAttentionCacheLayerMixin, library.StaticSlidingWindowLayer
    known = type(cache) in (library.DynamicCache, library.StaticCache)
    return known and not any(isinstance(layer, (recurrent, counting)) for layer in cache.layers)


def _unlimited(cache: Any) -> Any:
    """A copy whose windows keep everything, since they count in Python; masks hide the same, and so does the state."""
    library = sys.modules["transformers.cache_utils"]
    if type(cache) not in (library.DynamicCache, library.StaticCache):
        raise InputError(f"a {type(cache).__name__} is not made of tensors alone; pass a DynamicCache or a StaticCache")
    made = copy.deepcopy(cache)
    for place, layer in enumerate(made.layers):
        if isinstance(layer, library.StaticSlidingWindowLayer):
            raise InputError("a static cache of a sliding window counts in Python; pass a DynamicCache")
        if isinstance(layer, library.LinearAttentionAndSlidingWindowAttentionLayer):
            made.layers[place] = library.LinearAttentionAndFullAttentionLayer(layer.number_of_states)
        elif isinstance(layer, library.DynamicSlidingWindowLayer):
            made.layers[place] = library.DynamicLayer()
    return made


def _places(cache: Any) -> Iterator[tuple[str, dict[Any, Any], Any]]:
    """For each tensor its name, such as ``layers_0_keys`` or ``layers_1_conv_states_0``, and where it is."""
    for number, layer in enumerate(cache.layers):
        for name, value in vars(layer).items():
            if isinstance(value, Tensor):
                yield f"layers_{number}_{name}", vars(layer), name
            elif isinstance(value, dict):
                for key in (k for k, item in value.items() if isinstance(item, Tensor)):
                    yield f"layers_{number}_{name}_{key}", value, key


def _tensors(cache: Any) -> Iterator[tuple[str, Tensor]]:
    return ((name, owner[key]) for name, owner, key in _places(cache))


def tensor_names(cache: Any) -> set[str]:
    """Of all tensors that the cache holds, in any layer."""
    return {name for name, _ in _tensors(cache)}


def _with_tensors(cache: Any, values: Mapping[str, Tensor]) -> Any:
    """The cache with other tensors; what else it knows is copied."""
    made = copy.copy(cache)
    made.layers = [copy.copy(layer) for layer in cache.layers]
    for layer in made.layers:
        vars(layer).update({name: dict(value) for name, value in vars(layer).items() if isinstance(value, dict)})
    for name, owner, key in _places(made):
        owner[key] = values[name]
    return made


def _grows(leaf: str, cache: Any) -> bool:
    layer = cache.layers[int(leaf.split("_")[1])]
    return leaf.split("_", 2)[2] in GROWING and not hasattr(layer, "max_cache_len")


def _axes(leaf: str, cache: Any, batch: Any) -> dict[int, Any]:
    rank = dict(_tensors(cache))[leaf].dim()
    return ({0: batch} if batch and rank else {}) | ({2: "past"} if _grows(leaf, cache) else {})


def _by_name(dynamic_shapes: Any, caches: Mapping[str, Any]) -> dict[str, Any]:
    shapes = {} if dynamic_shapes is None else dynamic_shapes
    if not isinstance(shapes, Mapping):
        raise InputError("give dynamic_shapes by name, as there is a cache among the arguments")
    if named := [name for name in caches if shapes.get(name) is not None]:
        raise InputError(
            f"the dims of a cache follow from those of the other inputs; leave '{named[0]}' out of dynamic_shapes"
        )
    return dict(shapes)


def _is_longer(shape: Any) -> bool:
    axes = shape if isinstance(shape, Mapping) else dict(enumerate(shape or ()))
    return any(dim is not None for axis, dim in axes.items() if axis != 0)


def _batch(shapes: Mapping[str, Any]) -> Any:
    """The dim of axis 0 of the first input that has one."""
    first = (s.get(0) if isinstance(s, Mapping) else s[0] if s else None for s in shapes.values())
    return next((dim for dim in first if dim is not None), None)
