import hashlib
from dataclasses import replace

import numpy as np
import pytest
import torch

from ambidex.model import Cache, LanguageModel, Shape, initialise, rotate, rotation_tables

SMALL = Shape(vocabulary_size=37, layers=2, width=32, heads=4, kv_heads=2, feed_forward=48, context=24)
SHAPES = [SMALL, replace(SMALL, ngrams=4, ngram_rows=50)]


def small_model(shape: Shape = SMALL) -> LanguageModel:
    model = LanguageModel(shape)
    initialise(model, seed=3)
    return model


def some_tokens(rows: int = 2, length: int = 12) -> torch.Tensor:
    numbers = np.random.default_rng(0).integers(0, SMALL.vocabulary_size, (rows, length))
    return torch.from_numpy(numbers)


def test_counted_parameters_are_the_built_ones():
    for tied in (True, False):
        shape = Shape(37, 2, 32, 4, 2, 48, 24, tied=tied)
        built = sum(p.numel() for p in LanguageModel(shape).parameters())
        assert sum(shape.parameters().values()) == built


def test_the_45m_preset_has_the_parameters_that_it_is_named_for():
    from ambidex import config, plan

    settings = config.resolve({"preset": "45m"}, environment={}).settings
    assert sum(plan.shape_of(settings, settings.vocabulary_size).parameters().values()) == 45_626_240


@pytest.mark.parametrize("shape", SHAPES, ids=["tokens", "groups of four"])
def test_no_token_sees_a_later_one(shape):
    model, tokens = small_model(shape), some_tokens()
    before = model.logits(model(tokens))
    tokens[:, 7] = (tokens[:, 7] + 1) % SMALL.vocabulary_size
    after = model.logits(model(tokens))
    assert torch.equal(before[:, :7], after[:, :7])
    assert not torch.allclose(before[:, 7:], after[:, 7:])


@pytest.mark.parametrize("shape", SHAPES, ids=["tokens", "groups of four"])
@pytest.mark.parametrize("at_once", [2, 5])  # fewer than a group has, and more
def test_reading_token_by_token_with_a_cache_gives_what_reading_at_once_gives(shape, at_once):
    model, tokens = small_model(shape), some_tokens()
    whole = model.logits(model(tokens))
    cache = Cache()
    pieces = [model.logits(model(tokens[:, :at_once], cache))]
    pieces += [model.logits(model(tokens[:, n : n + 1], cache)) for n in range(at_once, tokens.shape[1])]
    assert torch.allclose(torch.cat(pieces, dim=1), whole, atol=1e-5)


def test_rotation_depends_on_the_distance_between_two_tokens_alone():
    cosine, sine = rotation_tables(24, 8, 10_000.0)
    q, k = torch.randn(1, 1, 1, 8), torch.randn(1, 1, 1, 8)

    def score(at: int, other: int) -> float:
        return float((rotate(q, cosine[at], sine[at]) * rotate(k, cosine[other], sine[other])).sum())

    assert score(5, 2) == pytest.approx(score(20, 17), abs=1e-5)
    assert score(5, 2) != pytest.approx(score(5, 4), abs=1e-3)


def test_fewer_key_value_heads_than_query_heads_share_them_in_groups_of_neighbours():
    # With the same key/value head repeated by hand the wide model must compute the same.
    narrow = small_model()
    wide = LanguageModel(Shape(37, 2, 32, 4, 4, 48, 24))
    weights = narrow.state_dict()
    for name in list(weights):
        if name.endswith(("k_proj.weight", "v_proj.weight")):
            weights[name] = weights[name].view(2, 8, 32).repeat_interleave(2, dim=0).reshape(32, 32)
    wide.load_state_dict(weights)
    tokens = some_tokens()
    assert torch.allclose(narrow(tokens), wide(tokens), atol=1e-5)


def test_first_weights_are_the_same_bytes_everywhere():
    digest = hashlib.sha256()
    for name, weight in sorted(small_model().named_parameters()):
        digest.update(name.encode() + weight.detach().numpy().astype("<f4").tobytes())
    assert digest.hexdigest() == "57a126375a7828a6474cd7632d909f41fff4c63ba4471377182625f7556283fe"


def test_the_tables_of_rotation_are_the_same_bytes_everywhere():
    cosine, sine = rotation_tables(64, 16, 10_000.0)
    digest = hashlib.sha256(cosine.numpy().astype("<f4").tobytes() + sine.numpy().astype("<f4").tobytes())
    assert digest.hexdigest() == "8425ceac5be0bb4ad82b3057c71009dd1093362adb353a42bc459fd80ef062b8"


def test_another_layer_changes_no_weight_of_the_others_but_the_scale_of_what_they_add():
    two, three = small_model(), small_model(Shape(37, 3, 32, 4, 2, 48, 24))
    for name, weight in two.named_parameters():
        other = three.get_parameter(name)
        scale = (2 / 3) ** 0.5 if name.endswith(("o_proj.weight", "down_proj.weight")) else 1.0
        assert torch.allclose(weight * scale, other, rtol=1e-6, atol=0)


def test_operations_are_counted_as_six_times_what_multiplies_and_the_attention_scores():
    shape = Shape(1000, 3, 64, 4, 4, 128, 32)
    matrices = 3 * (4 * 64 * 64 + 3 * 64 * 128) + 64 * 1000
    assert shape.operations_per_token() == 6 * (matrices + 3 * 64 * 32)
    one = (4 * 64 * 64 + 3 * 64 * 128) + 64 * 32
    assert shape.operations_per_token(depth=1) == 6 * (one + 64 * 1000)


def test_blocks_start_silent_where_the_residual_is_to_start_at_nothing():
    silent, usual = small_model(replace(SMALL, residual_init=0.0)), small_model(SMALL)
    for (name, weight), other in zip(silent.named_parameters(), usual.parameters()):
        adds = name.endswith(("o_proj.weight", "down_proj.weight"))
        assert not weight.any() if adds else torch.equal(weight, other), name
