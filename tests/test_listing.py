"""`ambidex checkpoints`: lists, verifies, and says 3 where none is good."""

import json

from ambidex import cli
from tiny import train_words


def test_what_comes_next_is_to_go_on_or_to_use_what_is_finished_in_words_that_can_be_typed(
    tmp_path, story, capsys
):
    out = tmp_path / "L\u00e4ufe \x1b[2J"
    assert cli.main(train_words(story, out, steps=2, save_every=1)) == 0
    capsys.readouterr()
    assert cli.main(["checkpoints", str(out)]) == 0
    shown = capsys.readouterr().out
    assert "next     ambidex sample '" in shown
    assert "\x1b" not in shown
    assert "L\u00e4ufe" in shown
    last = out / "checkpoints" / "step-000002"
    (last / "manifest.json").unlink()
    assert cli.main(["checkpoints", str(out)]) == 0
    assert "next     ambidex train --resume --out '" in capsys.readouterr().out


def test_it_lists_verifies_and_ends_in_3_where_none_is_good(tmp_path, story, capsys):
    out = tmp_path / "run"
    assert cli.main(train_words(story, out, steps=4, save_every=2, evaluate_every=2)) == 0
    capsys.readouterr()
    assert cli.main(["checkpoints", str(out)]) == 0
    assert "(newest good)" in capsys.readouterr().out
    broken = out / "checkpoints" / "step-000004" / "optimizer.safetensors"
    broken.write_bytes(broken.read_bytes()[:-1])
    assert cli.main(["checkpoints", str(out), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["schema"], told["newest_good"], [row["good"] for row in told["checkpoints"]]) == (
        1,
        2,
        [True, False],
    )
    assert "bytes instead of" in told["checkpoints"][1]["problem"]
    (out / "checkpoints" / "step-000002" / "manifest.json").unlink()
    assert cli.main(["checkpoints", str(out)]) == 3
    assert "no good checkpoint" in capsys.readouterr().err
    assert cli.main(["checkpoints", str(out), "--json"]) == 3
