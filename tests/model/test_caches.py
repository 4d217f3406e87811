import copy
import inspect

import pytest
import torch
from transformers import DynamicCache, Gemma3TextConfig, LlamaConfig, QuantizedCache, StaticCache
from transformers.cache_utils import Cache, DynamicLayer, DynamicSlidingWindowLayer

from uld.errors import ULDError
from uld.model.caches import FusedCache, PairedCache, RoomyLayer

CONFIGS = {
    "llama": LlamaConfig(num_hidden_layers=2),
    "gemma3": Gemma3TextConfig(
        num_hidden_layers=2, sliding_window=8, layer_types=["sliding_attention", "full_attention"]
    ),
}


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


def joint(kind, *, fused, family="llama"):
    """An ordinary cache with a few tokens of B = 2 rows in it, and a joint one of the same."""
    config = CONFIGS[family]
    make = {
        "dynamic": lambda: DynamicCache(config=config),
        "static": lambda: StaticCache(config, max_cache_len=12),
    }[kind]
    plain = make()
    one = FusedCache(make(), [2, 1]) if fused else PairedCache(make(), make())
    fill(plain, one, 3)
    return plain, one


def fill(plain, one, tokens, seed=0):
    rows = states(tokens, rows=2, seed=seed)
    for layer in range(2):
        plain.update(*rows, layer)
        if isinstance(one, FusedCache):
            one.update(*(torch.cat([state] * one.groups[layer]) for state in rows), layer)
        else:
            for part in one.split():
                part.update(*rows, layer)


def answers(cache):
    """All that can be asked of a cache without a change: its public attributes, and its methods where they answer."""
    found = {}
    for name in dir(Cache):
        if name.startswith("_"):
            continue
        static = inspect.getattr_static(Cache, name)
        if isinstance(static, property):
            found[name] = getattr(cache, name)
        elif name.startswith(("get_", "is_", "has_")):
            parameters = inspect.signature(static).parameters
            for layer in range(2):
                arguments = {"layer_idx": layer} | ({"query_length": 2} if "query_length" in parameters else {})
                try:
                    found[name, layer] = getattr(cache, name)(**arguments)
                except ValueError:  # such as what only linear attention has
                    found[name, layer] = "no answer"
    return found | {"len": len(cache), "offloading": cache.offloading}


@pytest.mark.parametrize("fused", [True, False], ids=["fused", "separate"])
@pytest.mark.parametrize("family", ["llama", "gemma3"])
@pytest.mark.parametrize("kind", ["dynamic", "static"])
def test_what_is_asked_is_answered_as_the_targets_cache_answers(kind, family, fused):
    plain, one = joint(kind, fused=fused, family=family)
    assert isinstance(one, type(plain))
    steps = {
        "a step": lambda: fill(plain, one, 1, seed=2),
        "past a window": lambda: fill(plain, one, 6, seed=3),
        "reset": lambda: [cache.reset() for cache in (plain, one)],
    }
    for step in (None, *steps):
        if step:
            steps[step]()
        wanted, found = answers(plain), answers(one)
        if kind == "dynamic" and fused:
            sizes = {"batch_size", "max_batch_size"} & found.keys()  # the second is an older name
            wanted |= {name: found[name] for name in sizes}  # transformers' own says only −1
        assert found == wanted, step


@pytest.mark.parametrize("fused", [True, False], ids=["fused", "separate"])
@pytest.mark.parametrize("kind", ["dynamic", "static"])
def test_what_changes_a_cache_changes_it_for_every_model(kind, fused):
    changes = {
        "reorder_cache": (torch.tensor([1, 1]),),
        "batch_select_indices": (torch.tensor([1]),),
        "batch_repeat_interleave": (2,),
        "crop": (-1,),
        "reset": (),
    }
    for name, arguments in changes.items():
        plain, one = joint(kind, fused=fused)
        if not hasattr(plain.layers[0], name):
            continue
        for cache in (plain, one):
            getattr(cache, name)(*arguments)
        wanted = plain.layers[0].keys
        parts = [one] if fused else one.split()
        for part in parts:
            for number, layer in enumerate(part.layers):
                copies = one.groups[number] if fused else 1
                expected = wanted if wanted is None else torch.cat([wanted] * copies)
                assert (layer.keys is None) if wanted is None else torch.equal(layer.keys, expected), name


def test_rows_can_be_chosen_by_truth_values():
    by_number, by_truth = (joint("dynamic", fused=True)[1] for _ in range(2))
    by_number.batch_select_indices(torch.tensor([1]))
    by_truth.batch_select_indices(torch.tensor([False, True]))
    for one, other in zip(by_number.layers, by_truth.layers, strict=True):
        assert torch.equal(one.keys, other.keys)


def test_room_is_made_ahead_of_time_for_every_model():
    fused = FusedCache(StaticCache(CONFIGS["llama"], max_cache_len=9), [3, 1])
    fused.early_initialization(2, 2, [3, 5], torch.float32, torch.device("cpu"))
    assert [tuple(layer.keys.shape) for layer in fused.layers] == [(6, 2, 9, 3), (2, 2, 9, 5)]
    assert fused.is_initialized and fused.batch_size == 2
    shallow = StaticCache(CONFIGS["llama"], max_cache_len=9)
    shallow.layers = shallow.layers[:1]
    paired = PairedCache(StaticCache(CONFIGS["llama"], max_cache_len=9), shallow)
    paired.early_initialization(2, [2, 4], 3, torch.float32, torch.device("cpu"))
    assert [layer.keys.shape[1] for part in paired.split() for layer in part.layers] == [2, 4, 2]


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy])
@pytest.mark.parametrize("fused", [True, False], ids=["fused", "separate"])
def test_a_copy_is_of_the_same_kind(copied, fused):
    _, one = joint("dynamic", fused=fused)
    two = copied(one)
    assert type(two) is type(one) and answers(two) == answers(one)


def test_what_a_later_transformers_adds_is_asked_of_the_inner_cache_or_refused():
    class Later(DynamicCache):
        is_new = True

        def has_news(self):
            return "news"

        def shuffle(self):
            self.layers.reverse()

    def made():
        return Later(config=CONFIGS["gemma3"])

    fused, paired = FusedCache(made(), [2, 1]), PairedCache(made(), made())
    for one in (fused, paired):
        assert one.is_new and one.has_news() == "news"
    with pytest.raises(ULDError, match="changes caches by shuffle, which uld does not know"):
        fused.shuffle()
    paired.shuffle()
    for part in paired.split():
        assert part.is_sliding == [False, True]


def test_rows_share_only_layers_that_keep_each_row_as_it_is():
    assert FusedCache.can_hold(DynamicCache(config=CONFIGS["gemma3"]))
    assert FusedCache.can_hold(StaticCache(CONFIGS["gemma3"], max_cache_len=9))
    try:
        rounding = QuantizedCache("fp8", CONFIGS["llama"])  # one scale for all rows
    except ValueError as error:
        assert "Unknown quantization backend" in str(error)
        pytest.skip("this version of transformers keeps no cache in fp8")
    assert not FusedCache.can_hold(rounding)
