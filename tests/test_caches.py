import copy

import pytest
import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from uld.caches import FusedCache, RoomyLayer


def states(tokens, rows=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(rows, 2, tokens, 3, generator=generator) for _ in range(2)]


def same(layer, other):
    assert layer.get_seq_length() == other.get_seq_length()
    assert layer.get_mask_sizes(2) == other.get_mask_sizes(2)
    return torch.equal(layer.keys, other.keys) and torch.equal(layer.values, other.values)


CHANGES = {
    "nothing": lambda layer: None,
    "beams": lambda layer: layer.reorder_cache(torch.tensor([3, 3, 0, 1])),
    "crop": lambda layer: layer.crop(-3),
    "fewer rows": lambda layer: layer.batch_select_indices(torch.tensor([1, 0])),
    "more rows": lambda layer: layer.batch_repeat_interleave(2),
    "reset": lambda layer: layer.reset(),
}


@pytest.mark.parametrize("change", CHANGES)
def test_room_changes_nothing_that_can_be_seen(change):
    layers = [RoomyLayer(), DynamicLayer()]
    for step, tokens in enumerate([5, 1, 1, 2, 1, 90, 1, 1]):
        for layer in layers:
            if step in (3, 4, 6):
                CHANGES[change](layer)
            rows = layer.keys.shape[0] if layer.get_seq_length() else 4
            found = layer.update(*states(tokens, rows, seed=step))
            assert found[0] is layer.keys and found[1] is layer.values
        assert same(*layers)


def test_tokens_are_copied_only_when_the_room_is_used_up():
    layer = RoomyLayer()
    layer.update(*states(100))
    places = []
    for step in range(200):
        layer.update(*states(1, seed=step))
        places.append(layer.keys.data_ptr())
    assert len(set(places)) <= 4


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy])
def test_two_copies_of_a_layer_go_on_apart(copied):
    first = RoomyLayer()
    for tokens in (4, 1):
        first.update(*states(tokens))
    second = copied(first)
    plain = [DynamicLayer(), DynamicLayer()]
    for layer in plain:
        for tokens in (4, 1):
            layer.update(*states(tokens))
    for step in range(3):
        for number, (layer, other) in enumerate(zip([first, second], plain, strict=True)):
            layer.update(*states(1, seed=10 * number + step))
            other.update(*states(1, seed=10 * number + step))
    assert same(first, plain[0]) and same(second, plain[1])


def test_what_was_there_before_a_crop_is_never_overwritten():
    layer = RoomyLayer()
    for tokens in (4, 1):
        keys, _ = layer.update(*states(tokens))
    before = keys.clone()
    layer.crop(-2)
    layer.update(*states(1, seed=7))
    assert torch.equal(keys, before)


def test_a_cache_filled_in_inference_mode_can_be_used_outside_of_it():
    layer, plain = RoomyLayer(), DynamicLayer()
    for step, inference in enumerate([True, True, False, False, True]):
        with torch.inference_mode(inference):
            layer.update(*states(2, seed=step))
            plain.update(*states(2, seed=step))
    assert same(layer, plain)


def test_gradients_pass_through():
    layer, plain = RoomyLayer(), DynamicLayer()
    grads = []
    for one in (layer, plain):
        new = [state.requires_grad_() for state in states(1, seed=1)]
        for step in ([state.requires_grad_() for state in states(3)], new, states(1, seed=2)):
            keys, values = one.update(*step)
        (keys.square().sum() + values.square().sum()).backward()
        grads.append([state.grad for state in new])
    for a, b in zip(*grads, strict=True):
        assert torch.equal(a, b)


def test_other_rows_are_an_error_and_not_broadcast():
    layer = RoomyLayer()
    for tokens in (4, 1):
        layer.update(*states(tokens))
    with pytest.raises(RuntimeError):
        layer.update(*states(1, rows=1))


def test_the_cache_of_all_models_makes_room_only_where_layers_keep_everything():
    cache = DynamicCache()
    cache.layers = [DynamicLayer(), DynamicSlidingWindowLayer(sliding_window=8)]
    fused = FusedCache(cache, [2, 1])
    assert [type(layer) for layer in fused.layers] == [RoomyLayer, DynamicSlidingWindowLayer]
