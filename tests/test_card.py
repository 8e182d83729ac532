"""A card says what the run's files say, names no folder, and hostile names stay text in it."""
import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

import cli
from drllm import Routers
from tools import card

FIGURES = {"accuracy": 0.822, "layers": 11.6, "layers_executed": 28.2, "n": 2000, "gain": 0.072,
           "interval": [0.056, 0.089], "sd": None, "execute": 0.7}


def metrics_of(tasks=("easy", "hard"), **changes):
    """metrics.json of a run whose first task is in domain, the others are out of it."""
    routes = {"vanilla": FIGURES | {"accuracy": 0.75, "gain": 0.0, "interval": [0.0, 0.0]},
              "dr.llm": FIGURES | changes}
    return {"routes": routes, "seeds": [{}, {}, {}],
            "tasks": {task: {"domain": "out" if n else "in", "routes": routes}
                      for n, task in enumerate(tasks)}}


def make_run(folder, tasks=("easy", "hard")):
    """A folder with all that a card is made from, by a run that knew absolute paths."""
    folder.mkdir(exist_ok=True)
    config = {"model": "/home/ada/secret/model", "out": str(folder), "simulations": 50,
              "data": ["/home/ada/secret/one.jsonl", "easy=/home/ada/secret/two.jsonl"],
              "fingerprint": "0123456789abcdef"}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    (folder / "metrics.json").write_text(json.dumps(metrics_of(tasks)), encoding="utf-8")
    routers = Routers(3, 16)
    routers.metadata = {"model": "0123456789abcdef", "choice": "safe", "seed": 0, "labels": 984,
                     "tasks": list(tasks)}
    routers.save(folder / "routers.safetensors")
    return folder


def parts(text):
    """(front matter, rows of cells of every table) of a card."""
    front = re.match(r"---\n(.*?)\n---\n", text, re.DOTALL).group(1)
    return front, [line.strip("|").split("|") for line in text.split("\n") if line.startswith("|")]


def test_a_card_says_what_the_files_say(tmp_path):
    text = card.card(make_run(tmp_path / "run"), "apache-2.0", "owner/name-1")
    assert "| dr.llm | 82.2 | +7.2 [+5.6, +8.9] | 11.60 |" in text
    assert "| hard | out | 82.2 |" in text and "The first of\n3 seeds" in text
    assert "3 layers of 16, fingerprint 0123456789abcdef" in text and "2000 test quest" in text
    assert "984 questions (easy, hard), labelled by the choice safe" in text
    assert "2510.12773" in text and "tools.ask" in text
    assert "/home" not in text and "secret" not in text and str(tmp_path) not in text


def test_the_front_matter_is_yaml_that_a_hub_knows(tmp_path):
    yaml = pytest.importorskip("yaml")
    run = make_run(tmp_path / "run")
    wanted = {"license": "no", "library_name": "dr-llm-from-scratch",
              "tags": ["dr-llm", "layer-routing", "dynamic-depth"]}
    assert yaml.safe_load(parts(card.card(run, "no"))[0]) == wanted  # a bare no is false in YAML
    assert yaml.safe_load(parts(card.card(run, "no", "01/2.0"))[0]) == wanted | {
        "base_model": "01/2.0"}


HOSTILE = ['quote " and \'', "a | b", "two\nlines\n---\nlicense: mit", "\\|", "\\", "`x` | `y`",
           "<script>alert(1)</script>", "![x](http://x)", "[a](b)", "**a** _b_ ~~c~~ $d$", "&#124;",
           "\x1b[31m\x00\u2028\u202e", "{license}", "# a", "\ud800", ""]


def check_names(folder, names):
    """The tables have the cells they would have with plain names, and the names read as given."""
    plain = parts(card.card(make_run(folder, [f"t{n}" for n in range(len(names))])))
    front, cells = parts(card.card(make_run(folder, names)))
    assert front == plain[0] and [len(row) for row in cells] == [len(row) for row in plain[1]]
    for name, row in zip(names, cells[len(cells) - len(names):]):
        shown = re.sub(r"\\(.)|&#124;", lambda found: found[1] or "|", row[0]).strip()
        assert shown == card.printable(name).strip()
        assert not re.search(r"(?<!\\)[`*_\[\]<>$~!]", re.sub(r"\\\\", "", row[0]))


def test_names_that_would_break_a_card_stay_text(tmp_path):
    """Catches a pipe that opens a cell, a newline that ends a table or the front matter, HTML."""
    check_names(tmp_path / "run", HOSTILE[:-1])


@given(st.lists(st.text(st.characters(codec="utf-8") | st.sampled_from("|\n\\`-<&;#_\"'"),
                        max_size=8), min_size=1, max_size=3, unique=True))
def test_any_name_stays_text(tmp_path_factory, names):
    check_names(tmp_path_factory.mktemp("card"), names)


# ---- the command ----

def refused(capsys, *args):
    """The one line of a command that ends with exit code 2."""
    with pytest.raises(SystemExit) as ended:
        cli.run(lambda: card.main([*map(str, args)]))
    out, err = capsys.readouterr()
    assert ended.value.code == 2 and not out and err.startswith("error: ") and err.count("\n") == 1
    return err


def test_the_command_writes_beside_the_routers_and_overwrites_only_when_told(tmp_path, capsys):
    run = make_run(tmp_path / "run")
    card.main([str(run), "--license", "mit"])
    file = run / "README.md"
    assert capsys.readouterr().out.strip() == str(file)
    assert 'license: "mit"' in file.read_text(encoding="utf-8")
    assert "--overwrite" in refused(capsys, run)
    assert 'license: "mit"' in file.read_text(encoding="utf-8")
    card.main([str(run), "--overwrite"])
    assert 'license: "other"' in file.read_text(encoding="utf-8")


def test_what_is_no_finished_run_is_refused(tmp_path, capsys):
    assert "no finished run" in refused(capsys, tmp_path / "none")
    assert not (tmp_path / "none").exists()
    run = make_run(tmp_path / "run")
    (run / "metrics.json").unlink()
    assert "metrics.json: no such file" in refused(capsys, run)
    for broken in ({}, {"routes": []}, metrics_of() | {"tasks": {"a": {"domain": "near"}}},
                   metrics_of(interval=[1]), metrics_of(accuracy="x"), metrics_of(gain=None)):
        (run / "metrics.json").write_text(json.dumps(broken), encoding="utf-8")
        assert "metrics.json: not what a run wrote" in refused(capsys, run)
    assert not (run / "README.md").exists()


def test_routers_of_nobody_are_refused(tmp_path, capsys):
    run = make_run(tmp_path / "run")
    from safetensors.torch import save_file
    for told in (None, {"drllm": "[]"}, {"drllm": "{"}, {"drllm": "{}"}):
        save_file({}, run / "routers.safetensors", told)
        refused(capsys, run)


@pytest.mark.parametrize("name", ["mit\nlicense: x", "a: b", "", '"', "{n}", "\u2028"])
def test_the_front_matter_has_names_as_text(tmp_path, name):
    yaml = pytest.importorskip("yaml")
    front = yaml.safe_load(parts(card.card(make_run(tmp_path / "run"), name, name + "/b"))[0])
    assert front["license"] == name and front["base_model"] == name + "/b"
    assert len(front) == 4
