"""What explain shows is what was run, and hostile text stays text."""
import base64
import hashlib
import json
import re
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cli import percent
from drllm import RouterRoute, Routers
from evaluate import Comparison, Outcome
from tools import explain
from tools.explain import (bar_widths, explained, page, percents, printable, records, safe_json,
                           shortened, watch)
from storage.files import InputError
from questions.loading import Question
from answers import answer, prepare

HOSTILE = ("</script><script>document.title='broken into'</script>", "<img src=x onerror=alert(1)>",
           "<!--<script>", "]]>", "{{data}}{{policy}}", "\u2028\u2029\x00\x1b[31mred\u202egnihton",
           "__proto__", "javascript:alert(1)", "' \" ` ${1} \\u003c", "语言 \U0001f600 é")
shares = st.integers(0, 10**6).map(
    lambda seed: torch.randn(3, generator=torch.Generator().manual_seed(seed)).mul(3).softmax(-1))


def told_of(correct, answer="x", layers=4):
    """The part of a record that tells of an answer."""
    return {"answer": answer, "correct": correct, "confidence": 0.5, "layers": layers, "passes": 2}


def record(n=0, **changes):
    """A record as records() makes them; n varies what the page sorts by."""
    decisions = ("1111", "0121", "1221", "0011")[n % 4]
    return {"id": f"q-{n}", "task": "ba"[n % 2], "level": n % 3, "question": f"what is {n}?",
            "gold": "7", "options": 0, "plain": told_of(float(n % 2 == 0)),
            "routed": told_of(float(n % 3 == 0), layers=sum(map(int, decisions))),
            "decisions": decisions, "routers": "0121", "guarded": "0100",
            "percents": [[60, 30, 10]] * 4} | changes


def hostile_record(text):
    told = told_of(None, text)
    return record(id=text, task=text, question=text, gold=text, plain=told, routed=told)


def with_routers(tiny_questions, guard=False):
    """(model, tokenizer, prompts, routers)"""
    model, tokenizer, prompts = tiny_questions
    torch.manual_seed(3)
    routers = Routers(3, 16)
    routers.b2.data = torch.randn(3, 1, 3)
    if guard:  # steps in on about half of what it meets
        points = model.embed_tokens.weight[torch.randint(40, (3, 8))]
        routers.set_guard(torch.eye(16), points, torch.tensor([3.5, 4.5, 5.5]))
    return model, tokenizer, prompts, routers.requires_grad_(False)


# ---- what was run ----

@pytest.mark.parametrize("guard, depth_bias, batch", [
    (True, 0.0, 3), (False, 0.0, 8), (True, -3.0, 1)])
def test_looking_on_changes_nothing_and_names_every_decision(tiny_questions, guard, depth_bias,
                                                             batch):
    """A wrapper that mixed up the rows of a batch, or the batches, would show one question's
    thoughts beside another's path: each row is checked against asking it alone."""
    model, tokenizer, prompts, routers = with_routers(tiny_questions, guard=True)
    route = RouterRoute(routers, depth_bias, guard=guard)
    seen = watch(model, tokenizer, prompts, route, batch)
    direct = answer(model, tokenizer, prompts, route)
    plain = answer(model, tokenizer, prompts, None)
    assert torch.equal(seen.routed.decisions, direct.decisions)
    assert seen.routed.texts == direct.texts and seen.plain.texts == plain.texts
    for n, prompt in enumerate(prompts):
        alone = watch(model, tokenizer, [prompt], route)
        torch.testing.assert_close(alone.probabilities[0], seen.probabilities[n])
        assert torch.equal(alone.guarded[0], seen.guarded[n])
    expected = seen.probabilities.argmax(-1).masked_fill(seen.guarded, 1)
    assert torch.equal(expected, seen.routed.decisions)
    if guard and not depth_bias:
        assert seen.guarded.any() and not seen.guarded.all()
    assert guard or not seen.guarded.any()


def test_records_say_what_the_evaluation_holds(tiny_questions):
    """Catches figures of another question, and a reward between right and wrong that is rounded:
    the headline is a mean of rewards, and f1 is seldom 0 or 1."""
    model, tokenizer, prompts, routers = with_routers(tiny_questions, guard=True)
    seen = watch(model, tokenizer, prompts, routers.route)
    seen.plain.correct[0] = 0.4
    for n, row in enumerate(records(seen)):
        assert row["id"] == prompts[n].question.id and row["gold"] == prompts[n].question.answer
        assert row["routed"]["layers"] == sum(map(int, row["decisions"]))
        assert row["plain"]["layers"] == 3
        assert row["plain"]["correct"] == round(seen.plain.correct[n].item(), 3)
        assert row["routed"]["answer"] == seen.routed.texts[n]
        for layer, shown in enumerate(row["percents"]):
            assert shown == pytest.approx(100 * seen.probabilities[n, layer].numpy(), abs=1.01)
            free = row["guarded"][layer] == "0"
            assert row["decisions"][layer] == (row["routers"][layer] if free else "1")


def test_without_a_gold_answer_nothing_is_called_right_or_wrong(tiny_questions):
    model, tokenizer, prompts, routers = with_routers(tiny_questions)
    question = Question("asked", "asked", 0, "a b c", "", prompt="a b c", max_new_tokens=2)
    row, = records(watch(model, tokenizer, prepare([question], tokenizer, model)[0], routers.route))
    assert row["gold"] is row["plain"]["correct"] is row["routed"]["correct"] is None
    text = "\n".join(explained(row))
    assert "correct" not in text and "gold" not in text


def test_overflowing_numbers_are_refused(tiny_questions):
    """NaN is no JSON: the page would not open."""
    model, tokenizer, prompts, routers = with_routers(tiny_questions)
    routers.b2[1] = float("nan")
    with pytest.raises(InputError, match="8 of 8 questions"):
        watch(model, tokenizer, prompts, routers.route)


@given(shares)
def test_percents_sum_to_a_hundred(probabilities):
    shown = percents(probabilities.tolist())
    assert sum(shown) == 100 and min(shown) >= 0
    assert shown == pytest.approx((100 * probabilities).tolist(), abs=1.01)


@given(shares, st.integers(1, 60))
def test_bars_fill_their_width(probabilities, width):
    """Three roundings that do not know of each other make bars of different lengths."""
    widths = bar_widths(percents(probabilities.tolist()), width)
    assert sum(widths) == width and min(widths) >= 0
    assert bar_widths([50, 25, 25], 8) == [4, 2, 2]


# ---- the terminal ----

@given(st.text())
def test_a_terminal_obeys_no_text(text):
    shown = printable(text)
    assert shown.isprintable() and printable(shown) == shown
    assert text.isprintable() is (shown == text)


@given(st.text(st.characters(max_codepoint=0x17f), min_size=1), st.sampled_from("\n \x1b"))
def test_lines_fit_eighty_columns_whatever_is_in_them(text, between):
    text = between.join([text, "x" * 200, text])
    lines = explained(hostile_record(text) | {"percents": [[0, 100, 0], [100, 0, 0]] * 2})
    assert max(map(len, lines)) <= 80 and all(line.isprintable() for line in lines)


@given(st.lists(st.text("abcdefgh", min_size=1, max_size=40), min_size=1, max_size=60))
def test_an_answer_is_shown_whole(words):
    """Catches a cut: every word of a long answer stands below its figures, in order."""
    told = record()["routed"] | {"answer": " ".join(words)}
    lines = explained(record(routed=told))
    at = next(n for n, line in enumerate(lines) if line.startswith("  Dr.LLM"))
    shown = lines[at + 1:-1] if "(below)" in lines[at] else [lines[at][15:41]]
    assert " ".join(" ".join(shown).split()) == " ".join(words)
    assert "0.500" in lines[at] and max(map(len, lines)) <= 80


def test_a_layer_by_hand():
    """40, 50 and 10 percent of 30 characters; the guard kept the router from skipping."""
    row = record(decisions="1111", routers="0112", guarded="1101", percents=[[40, 50, 10]] * 4)
    lines = [line for line in explained(row) if "execute ▪" in line]
    bar = "░" * 12 + "▒" * 15 + "█" * 3
    assert lines[0] == f"    0  execute ▪   {bar}   40   50  10 guard, no skip"
    assert lines[1].endswith("  10 guard") and lines[2].endswith("  10")
    assert lines[3].endswith("  10 guard, no repeat") and max(map(len, lines)) == 80


# ---- the page ----

class Page(HTMLParser):
    """Elements, ids and the text of scripts and styles of a page."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.ids, self.attributes = [], [], []
        self.inside, self.scripts, self.styles = None, [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += attributes
        self.ids += [value for name, value in attributes if name == "id"]
        if tag in ("script", "style"):
            self.inside = getattr(self, tag + "s")
            self.inside.append("")

    def handle_data(self, data):
        if self.inside is not None:
            self.inside[-1] += data

    def handle_endtag(self, tag):
        if tag in ("script", "style"):
            self.inside = None


json_values = st.recursive(st.none() | st.booleans() | st.integers() | st.text()
                           | st.sampled_from(HOSTILE),
                           lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner))


@given(json_values)
def test_embedded_json_comes_back_and_ends_no_element(value):
    text = safe_json(value)
    assert json.loads(text) == value
    assert not re.search("[<>&\u2028\u2029]", text)


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_is_data_and_no_markup(text):
    plain = Page(page({"model": "m"}, [record()]))
    hostile = Page(page({"model": text}, [hostile_record(text)], [text]))
    assert hostile.tags == plain.tags and hostile.attributes == plain.attributes
    assert hostile.scripts[1:] == plain.scripts[1:]
    embedded = json.loads(hostile.scripts[0])
    assert embedded["about"]["model"] == text and embedded["questions"] == [hostile_record(text)]
    assert embedded["known"] == [text]


def test_the_policy_allows_the_pages_own_script_and_style_only():
    """A hash that does not fit would leave the page blank; 'unsafe-inline' would run anything."""
    made = Page(page({}, [record()]))
    policy, = [v for name, v in made.attributes if name == "content" and "default-src" in v]
    assert policy.startswith("default-src 'none'") and "unsafe" not in policy
    for text, tag in ((made.scripts[1], "script"), (made.styles[0], "style")):
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy
    assert len(made.scripts) == 2 and len(made.styles) == 1


def test_the_page_asks_no_network_and_writes_no_markup():
    text = explain.TEMPLATE.read_text(encoding="utf-8")
    made = Page(text)
    assert not {name for name, _ in made.attributes} & {"src", "href", "style", "onclick", "onload"}
    assert not set(made.tags) & {"link", "iframe", "img", "object", "base"}
    for banned in ("http:", "https:", "url(", "@import", "innerHTML", "outerHTML", "insertAdjacent",
                   "document.write", "eval(", "Function(", "fetch(", "XMLHttp", "import("):
        assert banned not in text, banned


def test_the_script_finds_every_element_and_every_field():
    text = explain.TEMPLATE.read_text(encoding="utf-8")
    made = Page(text)
    assert len(set(made.ids)) == len(made.ids)
    assert set(re.findall(r'byId\("([\w-]+)"\)', text)) <= set(made.ids)
    fields = re.findall(r"\bq\.(\w+)", text)
    added = {"place", "outcome", "words", "domain"}
    assert set(fields) <= set(record()) | added and set(record()) - {"gold"} <= set(fields)


def test_every_control_has_a_name():
    """A screen reader reads the label aloud; a select without one is a riddle."""
    text = explain.TEMPLATE.read_text(encoding="utf-8")
    controls = re.findall(r"<(?:select|input)\b[^>]*>", text)
    labels = re.findall(r"<label>.*?</label>", text, re.DOTALL)
    assert len(controls) == len(labels) == 7
    for button in re.findall(r"<button\b[^>]*>[^<]*", text):
        assert "aria-label" in button or button.rpartition(">")[2].strip()
    assert 'role="listbox"' in text and "aria-activedescendant" in text


def test_two_thousand_questions_make_a_small_file():
    rows = [record(n, decisions="101121" * 2, routers="101121" * 2, guarded="0" * 12,
                   question="Question: " + "7 * 3 + " * 12, percents=[[33, 33, 34]] * 12)
            for n in range(2000)]
    assert len(page({}, rows, ["a"]).encode()) < 3e6


def test_long_texts_are_cut_in_the_middle_and_say_so():
    row = record(question="a" * 2500 + "z" * 2500)
    shown = json.loads(Page(page({}, [row])).scripts[0])["questions"][0]["question"]
    assert shown == "a" * 500 + "… (4000 characters more) …" + "z" * 500
    long = [shortened({"id": "task/" * 400 + str(n)})["id"] for n in range(2)]
    assert long[0] != long[1]


# ---- the command ----

@pytest.fixture
def flags(command):
    """Flags that name a model, its questions and their routers."""
    flags = command[1]
    out = flags.index("--out")
    return flags[:out] + flags[out + 2:]


def test_terminal_explains_the_question_named(flags, tiny_questions, capsys):
    name = tiny_questions[2][3].question.id
    explain.main([*flags, "--id", name])
    shown = capsys.readouterr().out
    assert shown.startswith(name) and "base model" in shown
    explain.main([*flags, "--question", "a b zebra Answer:", "--answer", "c"])
    shown = capsys.readouterr()
    assert "gold         c" in shown.out and "does not know 1 of 4 words: zebra" in shown.err


def test_html_holds_every_question_and_no_folder_of_this_machine(tmp_path, flags, tiny_questions,
                                                                 capsys):
    def page_of(*more):
        file = tmp_path / "out" / "x.html"
        explain.main([*flags, "--html", str(file), *more])
        return file.read_text(encoding="utf-8")

    text = page_of()
    data = json.loads(Page(text).scripts[0])
    assert [row["id"] for row in data["questions"]] == [p.question.id for p in tiny_questions[2]]
    assert str(tmp_path) not in text and data["about"]["model"].endswith("model")
    assert data["known"] == ["own"]
    assert "8 questions, 0." in capsys.readouterr().out
    assert len(json.loads(Page(page_of("--limit", "2")).scripts[0])["questions"]) == 2


def test_demo_questions_are_asked_in_the_demos_form(tiny_questions):
    _, tokenizer, _ = tiny_questions
    args = explain.parse_args(["--question", "3 + 4 ="])
    assert explain.typed_question(args, tokenizer).prompt == "Question: 3 + 4 = Answer: \\boxed{"
    args = explain.parse_args(["--question", "same a Options: (A) b (B) a"])
    assert explain.typed_question(args, tokenizer).prompt.endswith("(B) a Answer:")
    args = explain.parse_args(["--question", "3 + 4 =", "--model", "another"])
    assert explain.typed_question(args, tokenizer).prompt is None


def test_missing_routers_are_one_line_that_says_what_to_do(tmp_path, monkeypatch):
    """From an empty folder, where the demo has not been made."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="runs/demo/routers.safetensors.*`make`"):
        explain.main([])


@pytest.mark.parametrize("more, said", [(["--id", "none"], "none of the 8"),
                                        (["--question", " "], "empty")])
def test_wrong_input_is_refused(flags, more, said):
    with pytest.raises(InputError, match=said):
        explain.main([*flags, *more])


# ---- in a browser, where there is one ----

STEPS = """
const send = (id, event) => byId(id).dispatchEvent(event);
const press = (id, key) => send(id, new KeyboardEvent("keydown", { key, bubbles: true }));
const pick = (id, value) => { byId(id).value = value; send(id, new Event("change")); };
const ids = () => shown.map(q => q.id);
const result = { opening: byId("name").textContent, first: ids() };
document.querySelector("[data-key=layers]").click();
result.layers = ids();
document.querySelector("[data-key=layers]").click();
result.down = ids();
byId("list").focus();
press("list", "ArrowDown"); press("list", "ArrowDown"); press("list", "ArrowUp");
result.cursor = cursor;
press("list", "End");
result.end = cursor;
result.active = byId(byId("list").getAttribute("aria-activedescendant")).getAttribute("aria-label");
press("list", "Enter");
result.opened = byId("name").textContent;
result.focused = document.activeElement.id;
press("article", "Escape");
result.back = document.activeElement.id;
pick("task", "a"); pick("level", "1");
result.filtered = ids();
byId("filters").reset();
byId("search").value = "what is 17";
refresh();
result.found = ids();
result.bars = [...document.querySelectorAll("#stack .bar")].map(bar => bar.children[0].style.width);
result.rows = document.querySelectorAll(".question").length;
"""


def in_browser(tmp_path, text):
    """The page's DOM as Chromium builds it."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") \
        or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no chromium: the page is not tried in a browser")
    (tmp_path / "page.html").write_bytes(text.encode("utf-8", "replace"))
    made = subprocess.run([chromium, "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom",
                           "--disable-background-networking", "--disable-dev-shm-usage",
                           f"--user-data-dir={tmp_path / 'profile'}", "--window-size=1400,900",
                           (tmp_path / "page.html").as_uri()],
                          capture_output=True, encoding="utf-8", timeout=300)
    if made.returncode:
        pytest.skip(f"{chromium} does not start here: {made.stderr[-200:]}")
    return made.stdout


def result_of(steps, tmp_path, monkeypatch, *data):
    """What steps leave in `result`, in a page of these data. They are appended to the page's own
    script, so its policy allows them."""
    say = "document.documentElement.dataset.result = JSON.stringify(result);\n"
    template = (explain.TEMPLATE.parent / "explain.html").read_text(encoding="utf-8")
    (tmp_path / "stepped.html").write_text(template.replace(
        "openNamed();\n</script>", "openNamed();\n" + steps + say + "</script>"), encoding="utf-8")
    monkeypatch.setattr(explain, "TEMPLATE", tmp_path / "stepped.html")
    dom = Page(in_browser(tmp_path, page({"model": "m"}, *data)))
    monkeypatch.undo()
    return json.loads(dict(dom.attributes)["data-result"])


def test_sorting_filtering_and_keys_in_a_browser(tmp_path, monkeypatch):
    rows = [record(n) for n in range(40)]
    result = result_of(STEPS, tmp_path, monkeypatch, rows, ["a"])
    order = sorted(rows, key=lambda row: (row["task"] != "a", row["level"]))
    names = lambda kept: [row["id"] for row in kept]
    assert result["first"] == names(order)
    assert result["opening"] == next(row["id"] for row in order if row["routed"]["correct"]
                                     and not row["plain"]["correct"])
    by_layers = sorted(order, key=lambda row: (row["task"] != "a", row["routed"]["layers"]))
    assert result["layers"] == names(by_layers)
    down = sorted(order, key=lambda row: (row["task"] != "a", -row["routed"]["layers"]))
    assert result["down"] == names(down)
    assert result["cursor"] == 1 and result["end"] == 39
    assert result["active"].startswith(down[-1]["id"] + ",")
    assert result["opened"] == down[-1]["id"]
    assert result["focused"] == "name" and result["back"] == "list"
    assert result["filtered"] == names(r for r in down if r["task"] == "a" and r["level"] == 1)
    assert result["found"] == ["q-17"] and result["bars"] == ["60%"] * 4 and result["rows"] == 1


@pytest.mark.parametrize("outcomes, opened", [("both both broken corrected", 3),
                                              ("both none broken both", 2), ("both none", 0)])
def test_the_page_opens_on_a_corrected_question_else_a_broken_one(tmp_path, monkeypatch, outcomes,
                                                                 opened):
    kinds = {"both": (1.0, 1.0), "broken": (1.0, 0.0), "corrected": (0.0, 1.0), "none": (0.0, 0.0)}
    rows = [record(n, level=0, task="a", plain=told_of(plain), routed=told_of(routed))
            for n, (plain, routed) in enumerate(map(kinds.get, outcomes.split()))]
    steps = "const result = byId('name').textContent;"
    assert result_of(steps, tmp_path, monkeypatch, rows) == f"q-{opened}"


FIGURES = """
const table = () => [...byId("groups").rows].map(row =>
  [...row.cells].map(cell => [...cell.childNodes].map(part => part.textContent)));
const result = { all: table(), apart: byId("apart").textContent };
"""


def test_the_headline_is_that_of_the_evaluation(tmp_path, monkeypatch, tiny_questions):
    """In domain and out of it; the page counts in 32 bits as metrics.json does, or 1499 right of
    2000 would be 75.0 here and 74.9 there."""
    model, tokenizer, prompts, routers = with_routers(tiny_questions)
    prompts = [replace(prompt, question=replace(prompt.question, task="ab"[n % 3 == 0]))
               for n, prompt in enumerate(prompts)]
    seen = watch(model, tokenizer, prompts, routers.route)
    truth = Comparison(model, tokenizer, prompts, ["a"])
    truth.outcomes = {"vanilla": Outcome("", [seen.plain]), "dr.llm": Outcome("", [seen.routed])}
    metrics = truth.metrics()
    steps = FIGURES + "result.mean = percent(mean([...Array(2000).keys()].map(n => n < 1499)));"
    made = result_of(steps, tmp_path, monkeypatch, records(seen), ["a"])
    assert made["mean"] == percent((torch.arange(2000) < 1499).float().mean().item()) == "74.9"
    for shown, routes in zip(made["all"], (metrics["routes"], metrics["tasks"]["b"]["routes"])):
        plain, routed = routes["vanilla"], routes["dr.llm"]
        layers = [f"{one['layers']:.2f} layers" for one in (plain, routed)]
        assert shown[1][0] == str(plain["n"]) and shown[2] == ["–"]
        assert shown[3] == [percent(plain["accuracy"]), layers[0]]
        assert shown[4] == [percent(routed["accuracy"]), layers[1]]
        assert shown[5][0] in (percent(routed["gain"], True), percent(routed["gain"]))
    assert [row[0] for row in made["all"]] == [["in domain"], ["out of domain"]]


def test_guessing_and_one_group_where_the_domain_is_unknown(tmp_path, monkeypatch):
    """Of four and of two options: 37.5% by luck, of the two questions with options only."""
    rows = [record(n, options=options) for n, options in enumerate((4, 2, 0))]
    made = result_of(FIGURES, tmp_path, monkeypatch, rows)
    whole, choice = made["all"]
    assert whole[0] == ["all questions"] and whole[1] == ["3", "of 3"] and whole[2] == ["–"]
    assert choice[0] == ["multiple choice"] and choice[1] == ["2"] and choice[2] == ["37.5"]
    assert "not known" in made["apart"]


COLUMNS = """
const rates = [...byId("rates").children];
const result = {
  sizes: segments().map(part => part.size), counts: segments().map(part => part.count),
  shares: segments().map(part => {
    const of = columns(part, q => q.decisions[0] === "2").map(({ share }) => share);
    return of.reduce((sum, share) => sum + share, 0) / part.count;
  }),
  band: mapSizes().band, rates: rates.map(item => item.title),
  clear: rates.every((item, n) => !n || item.querySelector("span").getBoundingClientRect().width
    < item.getBoundingClientRect().width),
  labels: rates.map(item => item.querySelector("span").textContent.trim()),
  heights: [...rates[0].querySelectorAll("i")].map(part => part.style.height),
};
"""


def test_thousands_of_columns_are_bins_and_thirty_layers_have_room(tmp_path, monkeypatch):
    """A column under two pixels shows nothing; a bin is as strong as the share in it."""
    paths = ("2" + "1" * 29, "0" + "1" * 29, "1" * 30, "1" * 30)
    rows = [record(n, decisions=paths[n % 4], routers="1" * 30, guarded="0" * 30, level=0,
                   task="ab"[n % 8 >= 4], percents=[[0, 100, 0]] * 30) for n in range(4000)]
    made = result_of(COLUMNS, tmp_path, monkeypatch, rows, ["a"])
    assert len(made["sizes"]) == 2 and min(made["sizes"]) >= 2 and sum(made["counts"]) < 1400
    assert made["shares"] == pytest.approx([0.25, 0.25], abs=0.02)
    assert made["band"] >= 11 and made["labels"] == [str(n) for n in range(30)] and made["clear"]
    assert made["rates"][0] == "layer 0: skip 25%, execute 50%, repeat 25%"
    assert made["rates"][29] == "layer 29: skip 0%, execute 100%, repeat 0%"
    assert made["heights"] == ["50%", "25%"]


@pytest.mark.parametrize("form", ["harness/a-very-long-task-name/{}", "{}/a-very-long-task-name/x",
                                  "harness/a-very-long/{}/validation-split", "{}"])
def test_names_are_not_cut_where_they_differ(tmp_path, monkeypatch, form):
    """What is shown of each differs, and the last letters of it stand in a part that never gives
    way; the whole name is at hand."""
    rows = [record(n, id=form.format(f"{n:05d}")) for n in range(12)]
    steps = """
    const made = questions.map(q => idOf(q.id));
    const result = made.map(one => [one.textContent, one.lastChild.textContent, one.title]);"""
    made = result_of(steps, tmp_path, monkeypatch, rows)
    assert len({shown for shown, _, _ in made}) == 12
    for n, (shown, last, whole) in enumerate(made):
        assert whole == rows[n]["id"] and len(shown) <= 14 and str(n) in last


def test_hostile_text_stays_text_in_a_browser(tmp_path):
    text = in_browser(tmp_path, page({}, [hostile_record(text) for text in HOSTILE], [*HOSTILE]))
    dom = Page(text)
    assert "<title>What Dr.LLM ran" in text
    assert dom.tags.count("script") == 2 and "img" not in dom.tags
    labels = [value for name, value in dom.attributes if name == "aria-label"]
    assert sum("broken into" in value for value in labels) == 1
    assert dom.tags.count("title") == 1 and len(dom.scripts) == 2
