import json
import threading
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ambidex import api, cli, runs
from ambidex.cardfile import CARD
from ambidex.errors import Problems
from ambidex.rows import METRICS, Row
from ambidex.runs import Run
from tiny import train_words

numbers = st.floats(allow_nan=False, allow_infinity=False)
rows = st.builds(
    Row,
    st.integers(0, 10**9),
    st.integers(0, 10**12),
    numbers,
    st.none() | numbers,
    numbers,
    numbers,
    numbers,
    numbers,
)


@given(st.lists(rows, max_size=5))
def test_metrics_are_read_back_in_full_precision(tmp_path_factory, some):
    path = tmp_path_factory.mktemp("run")
    Run(path).append(some)
    assert Run(path).metrics == some


def a_row(step: int, val_loss: float | None = None) -> Row:
    return Row(step, step * 10, 2.0, val_loss, 0.1, 1.0, step * 0.5, 20.0)


def test_the_header_is_the_contracts():
    assert (
        runs.render_rows([], header=True)
        == "step,tokens,loss,val_loss,lr,grad_norm,seconds,tokens_per_second\n"
    )


def test_a_last_line_cut_short_by_a_kill_is_left_out(tmp_path):
    run = Run(tmp_path)
    run.append([a_row(1), a_row(2)])
    path = tmp_path / METRICS
    path.write_text(path.read_text()[:-30])
    assert [row.step for row in run.metrics] == [1]


def test_metrics_and_samples_are_cut_back_to_the_checkpoint(tmp_path):
    run = Run(tmp_path)
    for step in range(1, 6):
        run.append([a_row(step, 1.5)])
        run.add_sample(a_row(step, 1.5), 5, "a", f"text of step {step}")
    run.cut_back(3)
    assert [row.step for row in run.metrics] == [1, 2, 3]
    text = (tmp_path / runs.SAMPLES).read_text()
    assert "text of step 3" in text
    assert "text of step 4" not in text


def test_a_sample_full_of_backticks_and_escape_codes_stays_inside_its_fence_and_sends_nothing_to_the_terminal(
    tmp_path,
):
    run = Run(tmp_path)
    run.add_sample(a_row(1), 2, "`````", "\x1b[31m ``` ok")
    text = (tmp_path / runs.SAMPLES).read_text()
    assert "\x1b" not in text
    assert text.count("``````") == 2


def test_the_next_folder_is_the_next_number_of_its_preset(tmp_path, monkeypatch):
    monkeypatch.setenv("AMBIDEX_RUNS", str(tmp_path / "runs"))
    assert runs.next_folder("nano").name == "nano-001"
    assert runs.next_folder("nano").name == "nano-002"
    assert runs.next_folder("mini").name == "mini-001"
    (tmp_path / "runs" / "nano-007").mkdir()
    assert runs.next_folder("nano").name == "nano-008"


def test_a_run_is_held_by_one_at_a_time_and_given_back(tmp_path):
    first, second = Run(tmp_path / "run"), Run(tmp_path / "run")
    first.lock()
    with pytest.raises(Problems) as caught:
        second.lock()
    assert caught.value.exit_code == 7
    first.unlock()
    second.lock()
    second.unlock()


@given(
    st.one_of(
        st.binary(max_size=200),
        st.builds(lambda v: json.dumps(v).encode(), st.dictionaries(st.text(), st.text())),
    )
)
def test_a_card_that_is_none_ends_in_a_sentence_and_exit_code_3(tmp_path_factory, content):
    path = tmp_path_factory.mktemp("run")
    (path / CARD).write_bytes(content)
    with pytest.raises(Problems) as caught:
        _ = Run(path).card
    assert caught.value.exit_code == 3


def test_a_card_nested_beyond_reason_ends_in_a_sentence(tmp_path):
    (tmp_path / CARD).write_text('{"a":' * 100_000)
    with pytest.raises(Problems) as caught:
        _ = Run(tmp_path).card
    assert caught.value.exit_code == 3


def test_the_plot_is_a_picture_of_the_metrics(tmp_path):
    run = Run(tmp_path)
    assert run.plot() is None
    run.append([a_row(step, 2.0 if step % 2 else None) for step in range(1, 9)])
    picture = run.plot()
    assert picture is not None
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_rows_that_the_disk_refuses_are_kept_and_go_before_the_next(tmp_path):
    run = Run(tmp_path)
    rows = [Row(n, n * 4, 1.0, None, 0.1, 1.0, 1.0, 4.0) for n in (1, 2, 3)]
    run.append(rows[:1])
    (tmp_path / runs.METRICS).rename(tmp_path / "aside")
    (tmp_path / runs.METRICS).mkdir()  # stands for a disk that takes nothing
    run.append(rows[1:2])
    with pytest.raises(OSError, match="1 rows"):
        run.sync_metrics()  # so no checkpoint appears without the rows before it
    (tmp_path / runs.METRICS).rmdir()
    (tmp_path / "aside").rename(tmp_path / runs.METRICS)
    run.append(rows[2:])
    run.sync_metrics()
    assert run.metrics == rows


def test_rows_on_their_way_to_the_file_are_not_called_lost_by_the_thread_that_saves(tmp_path, monkeypatch):
    run = Run(tmp_path)
    run.append([a_row(1)])
    render, said = runs.render_rows, []

    def sync():
        try:
            run.sync_metrics()
        except OSError as error:
            said.append(error)

    saving = threading.Thread(target=sync)

    def slow(*arguments, **options):
        saving.start()  # asks just while a row is on its way
        saving.join(0.2)
        return render(*arguments, **options)

    monkeypatch.setattr(runs, "render_rows", slow)
    run.append([a_row(2)])
    saving.join(30)
    assert said == []
    assert [row.step for row in run.metrics] == [1, 2]


@pytest.mark.parametrize("loss", ["inf", "nan", "1e308", "-1e308"])
def test_the_plot_stands_whatever_numbers_are_in_the_metrics(tmp_path, loss):
    run = Run(tmp_path)
    run.append([a_row(step, float(loss) if step == 3 else 2.0) for step in range(1, 9)])
    run.append([replace(a_row(9), step=-(10**400), tokens=10**400)])
    assert run.picture()


def test_a_matplotlib_that_does_not_draw_costs_the_picture_alone(tmp_path, story, monkeypatch, capsys):
    def broken(self, rows):
        raise ValueError("no such backend")

    monkeypatch.setattr(Run, "_drawn", broken)
    assert cli.main(train_words(story, tmp_path / "run", steps=2)) == 0
    assert "no loss.png: no such backend" in capsys.readouterr().out
    assert (tmp_path / "run" / "summary.md").is_file()
    assert cli.main(["export", str(tmp_path / "run"), "--to", str(tmp_path / "model")]) == 0
    with pytest.raises(Problems, match="cannot draw"):
        api.Run(tmp_path / "run").plot()
