import pytest
import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from selfalign.engines.cache import ROOM, RoomyLayer, Rows, decode_attention, is_plain, join, keep

GROUPS, SIZE, LAYERS = 2, 3, 2


def columns(rows: int, length: int, seed: int = 0) -> Tensor:
    return torch.randn(rows, GROUPS, length, SIZE, generator=torch.Generator().manual_seed(seed))


def rows_of(lengths: list[int], seed: int = 0) -> Rows:
    """A cache of rows of these lengths, padded on the left."""
    width = max(lengths)
    cache = DynamicCache()
    for layer in range(LAYERS):
        keys = columns(len(lengths), width, seed + layer)
        cache.update(keys, -keys, layer)
    mask = torch.tensor([[0] * (width - length) + [1] * length for length in lengths])
    return Rows(cache, mask)


def remembered(rows: Rows) -> list[list[Tensor]]:
    """The keys and the values of each row's own columns in each layer."""
    width = rows.mask.shape[1]
    return [
        [
            part[i, :, :width][:, mask.bool()]
            for layer in rows.cache.layers
            for part in (layer.keys, layer.values)
        ]
        for i, mask in enumerate(rows.mask)
    ]


def assert_remember(rows: Rows, expected: list[list[Tensor]]) -> None:
    for found, wanted in zip(remembered(rows), expected, strict=True):
        for one, other in zip(found, wanted, strict=True):
            assert torch.equal(one, other)


# Room


def roomy(length: int) -> RoomyLayer:
    keys = torch.zeros(4, GROUPS, length + ROOM, SIZE)
    keys[:, :, :length] = columns(4, length)
    return RoomyLayer(keys, -keys, length)


def test_a_layer_remembers_what_it_is_given_when_it_has_room_and_when_it_grows():
    layer, plain = roomy(5), DynamicLayer()
    plain.update(columns(4, 5), -columns(4, 5))
    for step in range(2 * ROOM + 3):
        new = columns(4, 1, seed=step + 1)
        promised = layer.get_mask_sizes(1)
        keys, values = layer.update(new, -new)
        plain.update(new, -new)
        assert promised == (keys.shape[2], 0)
        assert layer.get_seq_length() == plain.get_seq_length() == 6 + step
        assert torch.equal(keys[:, :, : 6 + step], plain.keys)
        assert torch.equal(values[:, :, : 6 + step], plain.values)
        assert not keys[:, :, 6 + step :].any()


def test_no_token_is_copied_while_there_is_room():
    layer = roomy(5)
    places = set()
    for _ in range(ROOM):
        keys, _ = layer.update(columns(4, 1), columns(4, 1))
        places.add(keys.data_ptr())
    assert len(places) == 1
    assert layer.update(columns(4, 1), columns(4, 1))[0].data_ptr() not in places


def test_more_columns_than_there_is_room_for_are_taken():
    layer = roomy(5)
    new = columns(4, 3 * ROOM)
    promised = layer.get_mask_sizes(3 * ROOM)
    keys, _ = layer.update(new, new)
    assert torch.equal(keys[:, :, 5 : 5 + 3 * ROOM], new)
    assert promised == (keys.shape[2], 0)


# Rows that come and go


def test_rows_of_two_caches_are_joined_in_order_and_keep_their_own():
    first, second = rows_of([7, 3, 5]), rows_of([4, 2], seed=9)
    expected = [remembered(first)[2], remembered(first)[0], remembered(second)[1]]
    joined = join([(first, torch.tensor([2, 0])), (second, torch.tensor([1]))])
    assert joined.mask.tolist() == [[0] * 2 + [1] * 5, [1] * 7, [0] * 5 + [1] * 2]
    assert_remember(joined, expected)


def test_a_joined_cache_can_be_added_to_and_joined_again():
    joined = join([(rows_of([7, 3]), torch.tensor([0, 1]))])
    for layer in range(LAYERS):
        joined.cache.update(columns(2, 1), columns(2, 1), layer)
    joined.mask = torch.cat([joined.mask, torch.ones(2, 1, dtype=torch.long)], 1)
    second = rows_of([6], seed=5)
    expected = [remembered(joined)[1], *remembered(second)]
    again = join([(joined, torch.tensor([1])), (second, torch.tensor([0]))])
    assert again.mask.shape == (2, 6)
    assert_remember(again, expected)


def test_columns_before_the_first_token_of_all_are_dropped():
    joined = join([(rows_of([90, 3, 5]), torch.tensor([1, 2]))])
    assert joined.mask.shape == (2, 5)
    assert joined.cache.get_seq_length() == 5


def test_an_entering_row_may_be_longer_than_all_others():
    joined = join([(rows_of([2]), torch.tensor([0])), (rows_of([9], seed=3), torch.tensor([0]))])
    assert_remember(joined, remembered(rows_of([2])) + remembered(rows_of([9], seed=3)))


def test_a_gap_inside_of_a_row_stays():
    """A prefix that all share, then padding, then the row's own."""
    rows = rows_of([6, 6])
    rows.mask[1, 2:4] = 0
    expected = remembered(rows)
    assert_remember(join([(rows, torch.tensor([0, 1]))]), expected)


def test_what_is_not_a_rows_own_is_a_number():
    """A masked value counts nothing, but nothing times not-a-number is not-a-number."""
    first = rows_of([2])
    joined = join([(first, torch.tensor([0])), (rows_of([40]), torch.tensor([0]))])
    for layer in joined.cache.layers:
        assert not layer.keys[0, :, :38].any()
        assert not layer.values[0, :, :38].any()


def test_a_part_without_rows_adds_nothing():
    none = torch.tensor([], dtype=torch.long)
    joined = join([(rows_of([50]), none), (rows_of([4, 2], seed=9), torch.tensor([0, 1]))])
    assert_remember(joined, remembered(rows_of([4, 2], seed=9)))
    assert joined.mask.shape == (2, 4)


def test_kept_rows_may_repeat():
    expected = remembered(rows_of([4, 2]))
    assert_remember(keep(rows_of([4, 2]), torch.tensor([1, 0, 1])), [expected[i] for i in (1, 0, 1)])


def test_layers_that_look_back_only_so_far_are_not_joined():
    cache = DynamicCache()
    cache.layers = [DynamicLayer(), DynamicLayer()]
    assert is_plain(cache)
    cache.layers[1] = DynamicSlidingWindowLayer(sliding_window=4)
    assert not is_plain(cache)


# Attention


class Layer(torch.nn.Module):
    num_key_value_groups = 3


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("length", [1, 4])
@pytest.mark.parametrize("scaling", [None, 0.3])
def test_attention_is_that_of_sdpa(dtype: torch.dtype, length: int, scaling: float | None):
    draw = torch.Generator().manual_seed(0)
    query = torch.randn(5, 6, length, 8, generator=draw).to(dtype)
    key = torch.randn(5, 2, 9, 8, generator=draw).to(dtype)
    value = torch.randn(5, 2, 9, 4, generator=draw).to(dtype)
    mask = torch.rand(5, 1, length, 9, generator=draw) < 0.7
    mask[..., -1] = True
    found, _ = decode_attention(Layer(), query, key, value, mask, scaling=scaling)
    expected, _ = sdpa_attention_forward(
        Layer(), *(x.float() for x in (query, key, value)), mask, scaling=scaling
    )
    assert found.shape == (5, length, 6, 4)
    assert found.dtype == dtype
    tolerance = 3e-2 if dtype == torch.bfloat16 else 1e-6
    torch.testing.assert_close(found.float(), expected, rtol=tolerance, atol=tolerance)


def test_a_bound_on_scores_is_refused_as_sdpa_refuses_it():
    one = torch.ones(1, 3, 1, 8, dtype=torch.bfloat16)
    mask = torch.ones(1, 1, 1, 1, dtype=torch.bool)
    with pytest.raises(ValueError, match="softcap"):
        decode_attention(Layer(), one, one[:, :1], one[:, :1], mask, softcap=30.0)
