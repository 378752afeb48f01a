"""What Python and a notebook get of a run."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

import ambidex
from ambidex.errors import Problems
from tiny import TINY


@pytest.fixture(scope="module")
def run(story: Path, tmp_path_factory: pytest.TempPathFactory) -> ambidex.Run:
    folder = tmp_path_factory.mktemp("api")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AMBIDEX_CACHE", str(folder / "cache"))
        return ambidex.train(**{**TINY, "data": [story], "out": folder / "<b>run</b>"})  # paths as they are


def test_rows_by_number_and_columns_by_name(run):
    assert [row.step for row in run.rows] == run.rows["step"] == list(range(1, 13))
    assert run.rows[-1].val_loss == run.val_loss == run.rows["val_loss"][-1]
    assert [row.step for row in run.rows[2:4]] == [3, 4]
    assert run.rows["val_loss"][0] is None
    with pytest.raises(KeyError, match="the columns are step"):
        run.rows["lose"]


def test_metrics_are_a_frame_where_pandas_is(run):
    pytest.importorskip("pandas", reason="pandas is not installed: tox run -e docs brings it")
    assert list(run.metrics.columns) == list(run.rows.columns)
    assert run.metrics["loss"].tolist() == run.rows["loss"]
    assert run.metrics["val_loss"].isna().sum() == run.rows["val_loss"].count(None)


def test_metrics_are_columns_where_pandas_is_not(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    assert run.metrics["loss"] == run.rows["loss"]
    assert run.metrics[-1].step == 12


def test_the_plot_is_a_picture_that_a_notebook_shows_and_a_file_can_hold(run, tmp_path):
    picture = run.plot()
    assert picture._repr_png_().startswith(b"\x89PNG")
    assert picture.save(tmp_path / "loss.png").read_bytes() == picture.png


def test_a_sample_is_the_commands_text_and_repeats_with_its_seed(run, capsys):
    from ambidex import cli

    text = run.sample("line ", 20, seed=3)
    assert text.startswith("line ")
    assert len(text) > len("line ")
    assert run.sample("line ", 20, seed=3) == text != run.sample("line ", 20, seed=4)
    capsys.readouterr()
    assert cli.main(["sample", str(run.path), "--prompt", "line ", "--tokens", "20", "--seed", "3"]) == 0
    from ambidex.runs import readable

    assert capsys.readouterr().out == readable(text) + "\n"


def test_everything_wrong_with_a_sample_is_raised_at_once(run):
    with pytest.raises(Problems) as caught:
        run.sample(tokens=-1, temperature=-1.0)
    assert len(caught.value.problems) == 2


def test_an_export_from_python_is_the_commands(run, tmp_path):
    assert (run.export(tmp_path / "out") / "config.json").exists()


def test_what_a_notebook_shows_is_escaped(run):
    shown = run._repr_html_()
    assert "<b>run</b>" not in shown
    assert "&lt;b&gt;run&lt;/b&gt;" in shown
    assert "data:image/png;base64," in shown
    assert "<th" in run.rows._repr_html_()


def test_a_folder_that_is_no_run_says_so_everywhere(tmp_path):
    nothing = ambidex.Run(tmp_path / "none")
    assert "There is no run here" in nothing._repr_html_()
    assert repr(nothing).startswith("Run(")
    for ask in (lambda: nothing.card, nothing.plot, nothing.sample, lambda: nothing.export(tmp_path / "o")):
        with pytest.raises(Problems) as caught:
            ask()
        assert caught.value.exit_code == 3


def test_every_public_name_is_there_documented_and_known_to_type_checkers():
    stub = Path(ambidex.__file__).read_text("utf-8").split("if TYPE_CHECKING:")[1].split("__version__ =")[0]
    for name in ambidex.__all__:
        thing = getattr(ambidex, name)
        if name != "__version__":
            assert thing.__doc__
            assert name in stub
    assert dir(ambidex) == sorted(ambidex.__all__)
    assert (Path(ambidex.__file__).parent / "py.typed").exists()


def test_a_users_program_is_checked_against_the_types(tmp_path):
    if importlib.util.find_spec("mypy") is None:
        pytest.skip("mypy is not installed: tox run -e types")
    program = tmp_path / "program.py"
    program.write_text(
        "import ambidex\nrun = ambidex.train(steps=2)\nreveal_type(run)\nrun.sample(tokens='x')\n"
        "usable: bool = ambidex.gpu_usable()\n", "utf-8"
    )  # fmt: skip
    words = [
        sys.executable,
        "-m",
        "mypy",
        "--no-incremental",
        "--follow-imports=silent",
        "--ignore-missing-imports",
        str(program),
    ]
    source = str(Path(ambidex.__file__).parents[1])
    out = subprocess.run(
        words, check=False, capture_output=True, text=True, cwd=tmp_path, env={"MYPYPATH": source, "PATH": ""}
    ).stdout
    assert 'Revealed type is "ambidex.api.Run"' in out
    assert "arg-type" in out
    assert out.count("error:") == 1
