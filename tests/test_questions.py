"""Questions: every schema by its fields, refusals that name the row, prompts, answers, reward."""
import importlib.util
import json
import random
import time
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from checkpoint.tokenizer import load_tokenizer
from storage.files import InputError
from questions.loading import read_row
from questions.schemas import LETTERS
from questions.loading import OPENED, Question, load_all, load_questions, task_and_file
from questions.reward import extract_answer, grade
from questions.prompts import prompt_ids
from tiny import save_tiny, tiny_model
from tiny import write_questions as write

CHOICE = Question("c", "arc", 0, "Which one?", "B", ("red", "green", "blue", "grey"))
BOXED = Question("b", "math", 0, "How many?", "5")
OPEN = Question("o", "math", 0, "", "5", prompt="3 + 2 = Answer: \\boxed{")
VERBATIM = Question("v", "math", 0, "", "5", prompt="3 + 2 = ?")


def load(folder, rows, name="q.jsonl", **options):
    return load_questions(write(folder, rows, name), **options)


def arc(labels, texts, key):
    choices = {"text": list(texts), "label": list(labels)}
    return {"question": "Which?", "choices": choices, "answerKey": key}


# ---- schemas ----

@pytest.mark.parametrize("row, task, text, level, answer", [
    ({"problem": "p", "level": "Level 3", "answer": "\\frac12"}, "math", "p", 3, "\\frac12"),
    ({"problem": "p", "level": "Level 5", "solution": "so \\boxed{1} or \\boxed{\\frac{1}{2}}."},
     "math", "p", 5, "\\frac{1}{2}"),
    ({"problem": "p", "level": "Level ?", "solution": "\\boxed{7}", "answer": "8"},
     "math", "p", 0, "8"),
    ({"problem": "p", "answer": "8"}, "math", "p", 0, "8"),
    ({"query": "q", "gt_ans": "3", "query_metadata": {"level": 4}}, "dart", "q", 4, "3"),
    ({"query": "q", "gt_ans": 3}, "dart", "q", 0, "3"),
    ({"question": "g", "answer": "6*12=72\n#### 72"}, "gsm8k", "g", 0, "72"),
    ({"question": "g", "answer": "#### 1 is not\n#### -1,234,500 "}, "gsm8k", "g", 0, "-1234500"),
    ({"question": "o", "answer": 12, "level": 2, "task": "mine"}, "mine", "o", 2, "12"),
])
def test_schema_is_known_by_its_fields(row, task, text, level, answer):
    """Catches a reader that keys on file names, or that takes the wrong box, level or number."""
    found = read_row(row)
    assert (found.task, found.question, found.level, found.answer) == (task, text, level, answer)
    assert found.choices == ()


def test_own_schema_reads_the_same_from_lines_list_and_csv(tmp_path):
    """Catches a container that loses rows or fields."""
    rows = [{"id": "a", "question": "2 + 2", "answer": "4", "task": "sum", "level": "1"},
            {"id": "b", "question": 'commas, "quotes"', "answer": "1,2", "task": "x", "level": "0"}]
    lines = load(tmp_path, rows)
    listed = load(tmp_path, json.dumps(rows, indent=2), "q.json")
    table = load(tmp_path, 'id,question,answer,task,level\na,2 + 2,4,sum,1\n'
                           'b,"commas, ""quotes""","1,2",x,0\n', "q.csv")
    assert lines == listed == table
    assert [(q.id, q.task, q.level) for q in lines] == [("a", "sum", 1), ("b", "x", 0)]


def test_own_schema_reads_choices_prompt_and_budget(tmp_path):
    """Catches optional fields that are dropped, and a budget that ignores max_new_tokens."""
    rows = [{"prompt": "say", "answer": "B", "choices": ["x", "y"], "max_new_tokens": 3},
            {"prompt": "say", "answer": "B"}, {"question": "say", "answer": "A",
                                               "choices": ["x", "y"]}]
    first, second, third = load(tmp_path, rows)
    assert (first.prompt, first.choices, first.budget) == ("say", ("x", "y"), 3)
    assert (second.choices, second.budget) == ((), 15)
    assert (third.prompt, third.budget) == (None, 10)


@pytest.mark.parametrize("text, name", [
    ('{"question": "q", "answer": "1"}\n', "q.jsonl"), ("question,answer\nq,1\n", "q.csv"),
    ('[{"question": "q", "answer": "1"}]', "q.json"),
    ('\r\n{"question": "q", "answer": "1"}\r\n\r\n', "q.jsonl")])
def test_byte_order_mark_and_windows_line_ends_change_nothing(tmp_path, text, name):
    """Catches a mark glued to the first field's name, and blank lines taken for rows."""
    plain = load(tmp_path, text, name)
    assert load(tmp_path, b"\xef\xbb\xbf" + text.encode(), name) == plain
    assert [(q.question, q.answer) for q in plain] == [("q", "1")]


@pytest.mark.parametrize("mark", ["\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c"])
@pytest.mark.parametrize("name", ["q.csv", "q.jsonl"])
def test_only_newlines_end_a_row(tmp_path, mark, name):
    """Catches str.splitlines, which also cuts at a form feed or a Unicode line separator."""
    row = {"question": f"one{mark}two", "answer": "3"}
    text = f"question,answer\none{mark}two,3\n" if name.endswith("csv") else json.dumps(
        row, ensure_ascii=False)
    [found] = load(tmp_path, text, name)
    assert (found.question, found.answer) == (f"one{mark}two", "3")


@pytest.mark.skipif(importlib.util.find_spec("pyarrow") is not None, reason="pyarrow is here")
@pytest.mark.parametrize("data, word", [
    (b"", "0 bytes"), (b"PAR1 cut", "end with b' cut'"), (b"a table", "begin with b'a ta'")])
def test_what_is_no_whole_parquet_file_is_called_so_without_pyarrow(tmp_path, data, word):
    """Catches a download that broke off and is told to install a package."""
    with pytest.raises(InputError, match="q.parquet: not a whole parquet file") as error:
        load(tmp_path, data, "q.parquet")
    assert word in str(error.value)


@pytest.mark.parametrize("name", ["q.txt", "q.jsonl"])
def test_a_file_of_another_kind_names_the_formats_that_are_read(tmp_path, name):
    """Catches "Expecting value: line 1 column 1 (char 0)"."""
    with pytest.raises(InputError, match="no line of 2 is a JSON object; JSON, JSON lines, .csv"):
        load(tmp_path, b"What is 2 + 2?\n\nFour, mostly.\n", name)


def test_parquet_without_pyarrow_says_what_to_install(tmp_path):
    """Catches an ImportError traceback."""
    with pytest.raises(InputError, match="q.parquet.*pip install pyarrow"):
        load(tmp_path, b"PAR1PAR1", "q.parquet")


# ---- rows that cannot be used ----

BAD = {
    "not json": '{"question": "q", "ans',
    "a number": "17",
    "very deep": '{"a":' * 50_000,
    "no known fields": '{"text": "q", "label": 1}',
    "arc: key is no label": json.dumps(arc("AB", "xy", "C")),
    "arc: no choices": '{"question": "q", "answerKey": "A"}',
    "arc: one option": json.dumps(arc("A", "x", "A")),
    "arc: fewer texts than labels": json.dumps(arc("ABC", "xy", "A")),
    "math: no answer": '{"problem": "p", "solution": "no box"}',
    "math: question is a number": '{"problem": 5, "answer": "5"}',
    "gsm8k: nothing after ####": '{"question": "q", "answer": "so ####"}',
    "ours: null answer": '{"question": "q", "answer": null}',
    "ours: blank answer": '{"question": "q", "answer": " "}',
    "ours: blank question": '{"question": " ", "answer": "1"}',
    "ours: answer beyond the choices": '{"question": "q", "answer": "C", "choices": ["x", "y"]}',
    "ours: answer of two letters": '{"question": "q", "answer": "AB", "choices": ["x", "y"]}',
    "ours: choices in one text": '{"question": "q", "answer": "A", "choices": "xy"}',
    "ours: level is a word": '{"question": "q", "answer": "1", "level": "hard"}',
    "ours: level is infinite": '{"question": "q", "answer": "1", "level": Infinity}',
    "ours: half a character": '{"id": "s", "question": "\\ud800", "answer": "1"}',
}


@pytest.mark.parametrize("name", BAD)
def test_bad_row_is_refused_by_file_and_row(tmp_path, name):
    """Catches a raw traceback, a missing row number, and rows no model could ever answer."""
    good = '{"question": "good", "answer": "1"}'
    with pytest.raises(InputError, match=r"q\.jsonl:3: .+"):
        load(tmp_path, f"{good}\n\n{BAD[name]}\n{good}\n")


def test_csv_cells_are_empty_or_numbers(tmp_path):
    """Catches an empty cell taken for a verbatim prompt of no tokens, and "7" tokens, which fails
    only when lengths are added up."""
    [found] = load(tmp_path, "question,prompt,answer,max_new_tokens\nq,,3,7\n", "q.csv")
    assert (found.prompt, found.budget) == (None, 7)


def test_zero_is_an_answer_and_an_id(tmp_path):
    """Catches `or` between a value and its replacement where the value is the number 0."""
    [found] = load(tmp_path, [{"id": 0, "problem": "p", "answer": 0}])
    assert (found.id, found.answer) == ("0", "0")


# ---- ids ----

def test_one_id_for_two_questions_is_refused(tmp_path):
    """Catches labels of one question being used for another."""
    rows = [{"id": "x", "question": text, "answer": "1"} for text in "ab"]
    with pytest.raises(InputError, match="q.jsonl:2: .*'x'"):
        load(tmp_path, rows)


def test_files_share_no_id_unless_it_is_the_same_question(tmp_path):
    """Catches the second file's question vanishing, and which file is to blame."""
    first = write(tmp_path, [{"id": "x", "question": "a", "answer": "1"}], "one.jsonl")
    second = write(tmp_path, [{"id": "x", "question": "b", "answer": "1"}], "two.jsonl")
    with pytest.raises(InputError, match="two.jsonl.*'x'"):
        load_all([first, second])
    assert len(load_all([first, first])) == 1


def test_task_name_in_front_of_a_file_replaces_the_schemas(tmp_path):
    """Catches a name that is ignored, or that sticks to the next file."""
    first = write(tmp_path, [{"query": "q", "gt_ans": "1"}], "one.jsonl")
    second = write(tmp_path, [{"problem": "p", "answer": "1"}], "two.jsonl")
    found = load_all([f"challenge={first}", second])
    assert [q.task for q in found] == ["challenge", "math"]
    assert load_questions(first, "easy")[0].task == "easy"


@pytest.mark.parametrize("argument, files, task, file", [
    ("q.jsonl", ["q.jsonl"], None, "q.jsonl"), ("=q.jsonl", ["q.jsonl"], None, "q.jsonl"),
    ("sum=q.jsonl", ["q.jsonl"], "sum", "q.jsonl"), ("a=b.jsonl", ["a=b.jsonl"], None, "a=b.jsonl"),
    ("a=b.jsonl", ["a=b.jsonl", "b.jsonl"], None, "a=b.jsonl"),
    ("sum=a=b.jsonl", ["a=b.jsonl"], "sum", "a=b.jsonl"),
    ("n=1=b.jsonl", ["b.jsonl"], "n=1", "b.jsonl"),
    ("split=test/q.jsonl", ["split=test/q.jsonl"], None, "split=test/q.jsonl"),
    ("sum=split=test/q.jsonl", ["split=test/q.jsonl"], "sum", "split=test/q.jsonl"),
    ("x/split=test/q.jsonl", ["test/q.jsonl"], None, "x/split=test/q.jsonl"),
    ("./a=b.jsonl", ["b.jsonl"], None, "./a=b.jsonl"),
    ("sum=gone=1.jsonl", [], "sum", "gone=1.jsonl")])
def test_a_path_may_contain_an_equals_sign(tmp_path, monkeypatch, argument, files, task, file):
    """Catches a path cut at its last "=", another file read in its place, and a folder's name
    taken for a task."""
    monkeypatch.chdir(tmp_path)
    for name in files:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write(tmp_path, [{"question": "q", "answer": "1"}], name)
    assert task_and_file(argument) == (task, file)
    if files and file in files:
        assert [q.task for q in load_all([argument])] == [task or "questions"]
    else:
        with pytest.raises(InputError, match=str(Path(file))):
            load_all([argument])


@pytest.mark.parametrize("argument", ["", " ", "=", "sum="])
def test_an_empty_name_is_no_folder(argument):
    """Catches an unset variable of a shell script that is reported as the folder "."."""
    with pytest.raises(InputError, match=f"{argument!r}: no file is named"):
        load_all([argument])


@given(st.permutations(range(5)))
@settings(max_examples=10)
def test_ids_come_from_the_content_and_not_from_the_place(tmp_path_factory, order):
    """Catches row numbers or Python's salted hash as ids: resumed labels would be mixed up."""
    rows = [{"question": "a", "answer": "1"}, {"question": "a", "answer": "2"},
            {"question": "b", "answer": "A", "choices": ["x", "y"]},
            {"question": "b", "answer": "A", "choices": ["y", "x"]}, {"prompt": "a", "answer": "1"}]
    folder = tmp_path_factory.mktemp("ids")
    plain = {q.id: q for q in load(folder, rows)}
    assert {q.id: q for q in load(folder, [rows[i] for i in order])} == plain
    assert len(plain) == 5


# ---- prompts ----

@pytest.fixture(scope="module")
def spies(tmp_path_factory):
    """{"base", "chat"}: tokenizers of tiny folders whose ids are the text's characters."""
    model, spies = tiny_model(), {}
    for kind in ("base", "chat"):
        folder = save_tiny(tmp_path_factory.mktemp(kind), model)
        if kind == "chat":
            template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}<reply>"
            (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": template}),
                                                          encoding="utf-8")
        spies[kind] = load_tokenizer(folder)
        spies[kind].encode = lambda text, add_special_tokens=True: [*map(ord, text)]
    return spies


def shown(question, tokenizer):
    return "".join(map(chr, prompt_ids(question, tokenizer)))


def test_base_prompt_of_a_choice_ends_where_the_letter_comes(spies):
    """Catches options out of order or without their letters."""
    assert shown(CHOICE, spies["base"]) == (
        "Question: Which one?\n\n(A) red\n(B) green\n(C) blue\n(D) grey\n\n"
        "Answer: The correct answer is")


def test_base_prompt_of_an_expression_shows_two_examples_and_opens_the_box(spies):
    """Catches doubled braces and a box that is not opened."""
    text = shown(BOXED, spies["base"])
    assert text.startswith("Question: What is $2 + 3$?\nAnswer: \\boxed{5}\n\nQuestion: What is")
    assert text.endswith("\n\nQuestion: How many?\nAnswer: \\boxed{")
    assert text.count("\\boxed{5}") == 2 and "{{" not in text


def test_chat_prompts_go_through_the_folders_template(spies):
    """Catches the base prompt given to a chat model, and wrong letters in the instruction."""
    text = shown(CHOICE, spies["chat"])
    assert text.startswith("<user>Question: Which one?\nA. red\nB. green\nC. blue\nD. grey\nAnswer")
    assert "(A, B, C or D)" in text and text.endswith("response.<reply>")
    text = shown(BOXED, spies["chat"])
    assert text.startswith("<user>Question: How many?\n") and text.endswith("<reply>")
    assert "\\boxed{}" in text and "{{" not in text


@pytest.mark.parametrize("count, listed", [(2, "A or B"), (3, "A, B or C"), (5, "A, B, C, D or E")])
def test_instruction_lists_as_many_letters_as_options(spies, count, listed):
    """Catches a prompt that always names four letters."""
    question = Question("c", "arc", 0, "q", "A", tuple("vwxyz"[:count]))
    assert f"({listed})" in shown(question, spies["chat"])


@pytest.mark.parametrize("kind", ["base", "chat"])
def test_prompt_in_the_row_is_given_as_it_stands(spies, kind):
    """Catches a verbatim prompt that is wrapped, stripped or formatted."""
    for text in ("  3 + {x} = \\boxed{", "{question}\n"):
        question = Question("v", "mine", 0, "ignored", "5", prompt=text)
        assert shown(question, spies[kind]) == text


@pytest.mark.parametrize("kind", ["base", "chat"])
@pytest.mark.parametrize("text", ["{x}", "\\boxed{}", "{{ m }}", "{% if %}", "{0}", "{", "}", "%s"])
def test_braces_in_a_question_survive(spies, kind, text):
    """Catches question text being read as a format string or as a template."""
    assert f"Question: {text}\n" in shown(Question("b", "math", 0, text, "5"), spies[kind])
    choice = shown(Question("c", "arc", 0, text, "A", (text, "no")), spies[kind])
    assert choice.count(text) == 2


# ---- answers ----

@pytest.mark.task("3.1")
@pytest.mark.parametrize("text, letter", [
    ("B", "B"), ("b", "B"), (" B", "B"), ("B\nbecause", "B"), ("(B) text", "B"), (" (B) x", "B"),
    ("Answer: c.", "C"), ("Answer: C", "C"), ("answer:D", "D"), ("A: red", "A"), ("A) red", "A"),
    ("The correct answer is: (D)", "D"), ("Answer: The correct answer is A.", "A"),
    ("A cat", None), ("", None), ("   ", None), ("Because", None), ("AB", None), ("5", None),
    ("I think B", None), ("no idea (B)", None), ("**b**", "B"), ("C, not \\boxed{D}", None),
    ("C. Not \\boxed{D}", "C")])
def test_letter_is_the_one_the_answer_starts_with(text, letter):
    """Catches the article "A" counted as a choice, or a letter found somewhere inside, and a
    question with a prompt of its own whose choices are forgotten."""
    for question in (CHOICE, replace(CHOICE, prompt="Which one?")):
        assert extract_answer(text, question) == letter


MARKED = [
    "**{}**", "Answer: **{}**", "\\boxed{{{}}}", "Answer : {}", "(**{}**)", "__{}__", "*{}*",
    "_{}_", "`{}`", "${}$", "***{}***", "**({})**", "**{}.** green", "**{}** red", "**{}. red**",
    "**Answer: {}**", "**Answer:** {}", "**Answer**: {}", "Answer:\n\n**{}**", "* {}",
    "### Answer: **{}**", "Option {}", "**Option {}: green**", "{} : green", "$\\boxed{{{}}}$",
    "\\boxed{{ {} }}", "\\boxed{{({})}}", "\\boxed{{\\text{{{}}}}}", "\\boxed{{\\textbf{{({})}}}}",
    "\\boxed{{{}. green}}", "\\fbox{{{}}}", "\\textbf{{{}}}", "\\[\\boxed{{{}}}\\]", "\\({}\\)",
    "[{}]", "Answer: [{}]", '"{}"', 'Answer: "{}".', "“{}”", "<b>{}</b>",
    "<strong>{}.</strong> red",
    "{} - green", "Answer = {}", "Answer\uff1a{}", "The correct option is **{}**",
    "The answer is **{}**", "The answer is \\boxed{{{}}}.", "The correct answer is: **({})**"]


@pytest.mark.parametrize("text", [
    "**A cat**", "**Based on** it", "*I* think B", "I think **B**", "\\boxed{A cat}", "\\boxed{5}",
    "\\boxed{", "\\boxed{B", "$A$ and $B$", "**", "**AB**", "A **cat**", "A*B", "A_1",
    "Because **B**", "B and **C**", "**B** or **C**", "\\boxed{A} or \\boxed{B}",
    "**A**, **B**",
    "**A** and (B)", "(A) or (B)", "[A cat]", '"A cat"', "A-level", "<b>A cat</b>",
    "\\boxed{AB}", "The answer", "Option", "Options B", "$a = 5$"])
def test_marks_make_no_letter_of_a_word(text):
    """Catches an article or a variable counted as a choice since something is in bold."""
    assert extract_answer(text, CHOICE) is None


@pytest.mark.parametrize("form", [*MARKED, "{} cat", "({}) x", "**{} cat**", "I think {}"])
@pytest.mark.parametrize("letter", "ABCI")
def test_a_letter_may_be_in_bold_or_in_a_box_and_no_beginning_of_it_is_another(form, letter):
    """Catches instruct models that score nothing since they mark their letter. And "**Answer: B**"
    read as A, or as nothing, before its letter is written: answers.grade_if_settled decides by the
    beginning of an answer. It waits after an A."""
    whole = form.format(letter)
    final = extract_answer(whole, CHOICE)
    assert final == letter or form not in MARKED
    for end in range(len(whole) if final else 0):
        assert extract_answer(whole[:end], CHOICE) in (None, "A", final), whole[:end]


@pytest.mark.parametrize("letter", LETTERS)
def test_every_letter_that_an_option_may_have_can_be_given(letter):
    """Catches options that a file may have and no answer can name."""
    question = Question("c", "arc", 0, "q", letter, tuple(LETTERS.lower()))
    for text in (letter, f" ({letter}) it is", f"Answer: {letter.lower()}.", f"{letter})"):
        assert grade(text, question) == 1.0


@pytest.mark.task("3.1")
@pytest.mark.parametrize("question, text, found", [
    (BOXED, "\\boxed{1} no, \\boxed{2}", "2"), (BOXED, "so \\boxed{\\frac{1}{2}}.", "\\frac{1}{2}"),
    (BOXED, "\\boxed{1} no, \\boxed{2", None), (BOXED, "\\boxed{1", None), (BOXED, "5", None),
    (BOXED, "", None), (BOXED, "5}", "5"), (BOXED, "\\frac{1}{2}} so", "\\frac{1}{2}"),
    (OPEN, "5}", "5"), (OPEN, "5 } and more", "5 "), (OPEN, "\\{1, 2\\}}", "\\{1, 2\\}"),
    (OPEN, "5", None), (OPEN, "", None), (OPEN, "5} no, \\boxed{6}", "5"),
    (BOXED, "5}\n\nQuestion: What is $1+1$?\nAnswer: \\boxed{2}", "5"),
    (BOXED, "\\frac{1}{2}}\n\nQuestion: $\\boxed{x}$", "\\frac{1}{2}"),
    (BOXED, "\\boxed{5}}\n\nQuestion: 1?\nAnswer: \\boxed{2}", "5"),
    (BOXED, "\\{1, 2\\} is \\boxed{3}", "3"), (BOXED, "}", ""),
    (VERBATIM, " 5 or so\n", "5 or so"), (VERBATIM, "so \\boxed{5}", "5"), (VERBATIM, "", None)])
def test_expression_is_in_the_box_the_prompt_opened_or_in_the_last_one(question, text, found):
    """Catches the first of a chat answer's boxes winning, an unclosed box read to the end, a lost
    opened box, the answer to a further example that a base model made up, and a box wanted where
    the prompt asked for none."""
    assert extract_answer(text, question) == found


@pytest.mark.parametrize("question", [BOXED, VERBATIM])
@pytest.mark.parametrize("text", [
    "\\boxed{1} and \\boxed{2}", "So $\\boxed{2}$, $\\boxed{1}$.", "\\boxed{x=1} or \\boxed{x=2}",
    "\\boxed{1} \\text{ and } \\boxed{2}", "\\boxed{0} no, \\boxed{1},\\boxed{2}", "\\boxed{1,2}",
    "\\[\\boxed{1} \\quad \\text{or} \\quad \\boxed{2}\\]"])
def test_several_boxes_are_one_answer_if_only_a_joining_word_is_between_them(question, text):
    """Catches the last of several solutions taken for all of them, and for the only one."""
    assert grade(text, replace(question, answer="1, 2")) == 1.0
    assert grade(text, replace(question, answer="2")) == 0.0


@pytest.mark.parametrize("text", ["\\boxed{1} so \\boxed{2}", "\\boxed{1} \\boxed{2}", "\\boxed{2}",
                                  "\\boxed{2} or \\boxed{2.0}", "\\boxed{1}. And \\boxed{2}"])
def test_boxes_with_other_text_between_them_are_different_answers(text):
    """Catches a corrected answer that still counts as a part of the last."""
    assert grade(text, replace(BOXED, answer="2")) == 1.0
    assert grade(text, replace(BOXED, answer="1, 2")) == 0.0


# ---- reward ----

@pytest.mark.parametrize("gold", ["3 4 4", "\\text{June 20}", "c a b"])
def test_gold_with_spaces_is_matched_word_by_word(gold):
    """Catches a grade that strips the spaces between words, or compares the first word, and the
    letters of a question of the demo read as a product: copying them would be right."""
    question = Question("q", "sort", 0, "", gold, prompt="sort \\boxed{")
    words = gold.split(" ")
    assert grade(gold + " }", question) == grade(gold + "}", question) == 1.0
    assert grade(words[0] + "}", question) == 0.0
    assert grade(" ".join(words[::-1]) + "}", question) == 0.0


def test_choice_is_graded_by_its_letter_only():
    """Catches the option's text, or a box, counted as the letter, and letters of no option."""
    assert grade("B", CHOICE) == grade(" (B) green", CHOICE) == grade("Answer: b.", CHOICE) == 1.0
    for text in ("A", "green", "\\boxed{green}", "C) green", "", "A\nB", "E", "(E) none", "J"):
        assert grade(text, CHOICE) == 0.0


def timed_grade(text, question):
    start = time.process_time()
    reward = grade(text, question)
    assert isinstance(reward, float) and 0.0 <= reward <= 1.0
    assert time.process_time() - start < 1.0
    return reward


PIECES = st.one_of(st.text(max_size=20), st.sampled_from([
    "\\boxed{", "}", "{", "\\frac", "^", "9" * 30, "(", "\\sqrt", "Answer:", "B", "\\text{", "x",
    "\ud800", "!" * 9, "+", "-1", "/0", "\x00", " " * 40, "\\begin{pmatrix}", "&", "\\int"]))
TEXTS = st.lists(PIECES, max_size=12).map("".join)
QUESTIONS = st.one_of(
    st.builds(Question, st.just("q"), st.just("t"), st.just(0), TEXTS, TEXTS, prompt=st.one_of(
        st.none(), TEXTS, st.just("so \\boxed{"))),
    st.builds(Question, st.just("q"), st.just("t"), st.just(0), TEXTS, st.sampled_from("ABCD"),
              st.just(tuple("wxyz"))))


@given(TEXTS, QUESTIONS)
def test_grade_never_raises_and_never_hangs(text, question):
    """Catches a grader that evaluates what a model writes, or that fails on odd text."""
    timed_grade(text, question)
    timed_grade(f"\\boxed{{{text}}}", question)


@pytest.mark.parametrize("text", [
    " " * 16_000, " " * 3999 + "x", "answer " * 2000, "answer: " * 500 + "q", "\\boxed{" * 9999,
    "\\boxed{" + "9" * 5000 + "^" + "9" * 5000 + "}", "\\boxed{" + "(" * 3000 + "}",
    "\\boxed{9^{9^{9^9}}}", "\\boxed{99999!!!}", "B" + "\n" * 3998 + "x",
    "\\boxed{" + "+".join("abcdefgh" * 50) + "}"],
    ids=lambda text: f"{text[:12]!r}..{len(text)}")
def test_grade_of_hostile_text_takes_less_than_a_second(text):
    """Catches a pattern that backtracks, an exponent that is worked out, a stack that overflows."""
    for question in (CHOICE, BOXED, OPEN):
        timed_grade(text, question)


# ---- real files ----

def real_files(shared):
    data = shared / "data"
    files = [*data.glob("arc/*.jsonl"), *data.glob("math/*.jsonl"), *data.glob("gsm8k/*.jsonl"),
             *data.glob("mmlu/dev/*.csv")]
    return {file.stem: load_questions(file) for file in files}


def own_answers(question):
    """The gold answer as a chat model, then as a base model, would write it."""
    if question.choices:
        return f"Answer: {question.answer}", f" ({question.answer}) yes"
    return f"It is \\boxed{{{question.answer}}}.", f"{question.answer}}}\n\nQuestion: What"


def test_real_files_load_and_their_own_answers_are_right(shared):
    """Catches a schema that differs from the published one, and golds that no answer matches."""
    found = real_files(shared)
    counts = {"ARC-Challenge-Train": 1119, "ARC-Easy-Dev": 570, "train_1500": 1500,
              "MATH_train_3000": 3000, "hf_schema_ARC-Challenge-train-200": 200}
    assert {name: len(found[name]) for name in counts} == counts
    assert len(found) > 50
    rng = random.Random(0)
    for name, questions in found.items():
        for question in rng.sample(questions, min(200, len(questions))):
            assert question.answer in LETTERS if question.choices else OPENED not in question.answer
            for text in own_answers(question):
                assert grade(text, question) == 1.0, (name, question.id, text)


def test_both_published_schemas_of_arc_give_the_same_questions(shared):
    """Catches a letter shifted by one of the two readers."""
    folder = Path(shared) / "data/arc"
    train = {q.id: q for q in load_questions(folder / "ARC-Challenge-Train.jsonl")}
    for question in load_questions(folder / "hf_schema_ARC-Challenge-train-200.jsonl"):
        assert train[question.id] == question
