from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ambidex import config
from ambidex.config import resolve
from ambidex.errors import Problems


def resolved(flags=None, *, file=None, environment=None, **options):
    return resolve(flags or {}, file=file, environment=environment or {}, **options)


def test_a_later_source_wins_and_each_value_remembers_its_origin(tmp_path):
    file = tmp_path / "mine.toml"
    file.write_text("steps = 5\nlayers = 6\nwidth = 384\nseed = 8\n")
    r = resolved({"seed": "9"}, file=file, environment={"AMBIDEX_LAYERS": "7", "AMBIDEX_SEED": "1"})
    assert (r.settings.steps, r.settings.layers, r.settings.seed, r.settings.heads) == (5, 7, 9, 3)
    assert r.origins["steps"] == str(file)
    assert r.origins["layers"] == "variable AMBIDEX_LAYERS"
    assert r.origins["seed"] == "flag --seed"
    assert r.origins["heads"] == "preset nano"
    assert r.origins["clip"] == "default"
    assert [r.kind(n) for n in ("steps", "layers", "seed", "heads", "clip")] == [
        "toml", "environment", "flag", "preset", "default"]  # fmt: skip


def test_what_a_preset_or_a_default_gives_does_not_count_as_given():
    assert resolved({"steps": "5"}).given() == {"steps": 5}


@pytest.mark.parametrize("name", config.preset_names())
def test_a_printed_preset_is_a_configuration_that_means_the_same(tmp_path, name):
    file = tmp_path / "copy.toml"
    file.write_text(config.preset_text(name))
    assert resolved(file=file).settings.numeric() == resolved({"preset": name}).settings.numeric()


def test_every_preset_sets_the_same_keys_so_that_a_copy_of_one_rests_on_no_other():
    import tomllib

    keys = {name: set(tomllib.loads(config.preset_text(name))) for name in config.preset_names()}
    assert all(found == keys["nano"] for found in keys.values())


def test_what_a_preset_gives_is_said_to_be_that_presets_own():
    chosen = resolved({"preset": "quick"})
    assert chosen.origins["steps"] == chosen.origins["ngrams"] == "preset quick"
    assert chosen.origins["preset"] == "flag --preset"


def test_rows_that_nobody_looks_up_tell_no_two_runs_apart():
    def numeric(**flags):
        return resolved(flags).settings.numeric()

    assert numeric(ngrams="1", ngram_rows="5") == numeric(ngrams="1")
    assert numeric(layers="3", grow_from="3", grow_at="0.1") == numeric(layers="3")
    assert numeric(layers="3", grow_from="2", grow_at="0.1") != numeric(layers="3", grow_from="2")
    assert numeric(layers="3", grow_from="2").items() ^ numeric(layers="3").items() >= {
        ("grow_from", 0),
        ("grow_from", 2),
    }
    assert numeric(ngrams="2", ngram_rows="5") != numeric(ngrams="2")


def test_a_preset_may_be_chosen_by_every_source(tmp_path):
    file = tmp_path / "mine.toml"
    file.write_text('preset = "mini"\n')
    assert resolved(file=file).settings.layers == 6
    assert resolved(environment={"AMBIDEX_PRESET": "mini"}).settings.layers == 6
    assert resolved({"preset": "45m"}, file=file).settings.layers == 11


def test_all_errors_of_all_sources_come_at_once_each_with_its_place(tmp_path):
    file = tmp_path / "bad.toml"
    file.write_text('layers = "many"\nstepz = 3\n')
    with pytest.raises(Problems) as caught:
        resolved(
            {"seed": "-1", "steps": None},
            file=file,
            environment={"AMBIDEX_CLIP": "wide"},
            unknown_flags=["--sed"],
        )
    text = str(caught.value)
    assert caught.value.exit_code == 2
    assert len(caught.value.problems) == 6
    for part in ("--layers", "'many'", str(file), "did you mean 'steps'", "--seed", "'-1'", "--steps", "nothing",
                 "AMBIDEX_CLIP", "did you mean '--seed'"):  # fmt: skip
        assert part in text, part


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"width": "100", "heads": "3"}, "--width 99"),
        ({"width": "6", "heads": "2"}, "even"),
        ({"heads": "6", "kv_heads": "4", "width": "192"}, "--kv-heads 3"),
        ({"batch_size": "10", "micro_batch_size": "4"}, "--micro-batch-size 5"),
        ({"tokenizer": "bpe", "vocabulary_size": "100"}, "257"),
        ({"precision": "fp16", "device": "cpu"}, "--precision auto"),
        ({"ngrams": "9", "context": "8"}, "--ngrams 8"),
        ({"grow_from": "5", "layers": "4"}, "--grow-from 1"),
    ],
)
def test_what_is_right_by_itself_and_wrong_together_is_refused_with_the_nearest_that_is_right(flags, said):
    with pytest.raises(Problems, match=said):
        resolved(flags)


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("90", 90), ("5m", 300), ("1h30m", 5400), ("1.5s", 1.5), ("2m5s", 125)]
)
def test_durations_are_read_as_people_write_them(text, seconds):
    assert resolved({"time": text}).settings.time == seconds


@pytest.mark.parametrize("text", ["", "soon", "-5s", "5 m x", "1h 2h", "nan", "inf"])
def test_what_is_no_duration_is_refused(text):
    with pytest.raises(Problems):
        resolved({"time": text})


@pytest.mark.parametrize("text", ["gpu", "cuda:", "cuda:x", "CPU", "cuda:-1", ""])
def test_what_is_no_device_is_refused(text):
    with pytest.raises(Problems):
        resolved({"device": text})


def test_an_empty_variable_counts_as_unset():
    assert resolved(environment={"AMBIDEX_STEPS": ""}).settings.steps == resolved().settings.steps


def test_a_path_with_a_comma_or_a_blank_stays_one_path():
    assert resolved({"data": ["a, b.txt", "c d.txt"]}).settings.data == ("a, b.txt", "c d.txt")


values = st.one_of(
    st.integers(), st.floats(), st.text(max_size=20), st.booleans(), st.none(), st.lists(st.text(max_size=5))
)


@given(
    st.dictionaries(
        st.one_of(st.sampled_from(list(config.fields())), st.text(max_size=12)), values, max_size=6
    )
)
def test_any_values_whatever_end_in_settings_or_in_problems(flags):
    try:
        settings = resolved(flags).settings
    except Problems as problems:
        assert problems.exit_code == 2
        assert str(problems)
    else:
        assert settings.steps >= 1


@given(st.binary(max_size=200))
def test_any_file_whatever_ends_in_settings_or_in_problems(tmp_path_factory, content):
    file = tmp_path_factory.mktemp("toml") / "any.toml"
    file.write_bytes(content)
    try:
        resolved(file=file)
    except Problems as problems:
        assert problems.exit_code == 2


def test_every_setting_has_a_help_text_and_the_reference_page_is_what_the_settings_say():
    import importlib.util

    assert all(info.description for info in config.fields().values())
    path = Path(__file__).parents[1] / "tools" / "reference.py"
    spec = importlib.util.spec_from_file_location("reference", path)
    assert spec is not None
    assert spec.loader is not None
    reference = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(reference)
    assert reference.main(["--check"]) == 0


def test_a_configuration_may_begin_with_the_mark_of_windows_editors(tmp_path):
    file = tmp_path / "mine.toml"
    file.write_bytes("seed = 7\n".encode("utf-8-sig"))
    assert config.resolve({}, file=file, environment={}).settings.seed == 7


@pytest.mark.parametrize("name", ["steps", "learning_rate", "time", "step_timeout", "threads"])
def test_true_is_no_number(name):
    with pytest.raises(Problems, match=config.flag(name)):
        resolved({name: True})


@pytest.mark.parametrize("name", ["time", "step_timeout", "collective_timeout"])
def test_a_negative_duration_is_told_what_a_duration_is_at_least(name):
    with pytest.raises(Problems, match="0 or more"):
        resolved({name: "-5s"})


def test_no_number_is_answered_with_a_finite_one():
    with pytest.raises(Problems, match="wanted: a finite number"):
        resolved({"beta1": "nan"})


@pytest.mark.parametrize("place", ["hf:NAME", "a:b.txt", "hf:one/two@train"])
def test_one_place_given_as_text_is_one_place_whatever_is_in_its_name(place):
    assert resolved({"data": place}).settings.data == (place,)


@pytest.mark.parametrize(("typed", "places"), [
    ("a.txt:b.txt", ["a.txt", "b.txt"]), ("hf:one/two:b.txt", ["hf:one/two", "b.txt"]), ("b.txt:hf:x", ["b.txt", "hf:x"]),
    ("https://example.org/a", ["https://example.org/a"]), ("/data/hf/x:y", ["/data/hf/x", "y"]),
])  # fmt: skip
def test_a_variable_separates_places_as_path_does_but_for_the_colon_of_a_data_set(typed, places):
    assert config._split_as_path(typed, ":") == places
