"""Question files of other people: nothing that a question needs is lost, nothing is misread.

The rows here are made up, in the form in which the owners of each benchmark publish theirs.
"""
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from questions import schemas
from storage.files import InputError
from questions.loading import Question, read_row
from questions.schemas import LETTERS
from questions.loading import load_questions
from tiny import write_questions as write


def load(folder, rows, name="q.jsonl", **options):
    return load_questions(write(folder, rows, name), **options)


def gold(question):
    """The text of the right option."""
    return question.choices[LETTERS.index(question.answer)]


# ---- each schema: a question, its options and which is right, as a row of its file ----

def ai2(question, options, correct, **more):
    choices = [{"text": text, "label": LETTERS[n]} for n, text in enumerate(options)]
    return {"id": "x", "question": {"stem": question, "choices": choices, **more},
            "answerKey": LETTERS[correct]}


def hugging_face(question, options, correct, name="question", labels=LETTERS, **more):
    choices = {"text": options, "label": list(labels[:len(options)])}
    return {"id": "x", name: question, "choices": choices, "answerKey": labels[correct], **more}


def agieval(question, options, correct, passage="A passage."):
    return {"passage": passage, "question": question, "label": LETTERS[correct], "answer": None,
            "options": [f"({LETTERS[n]}){text}" for n, text in enumerate(options)],
            "other": {"source": "a paper"}}


def truthfulqa(question, options, correct):
    wrong = [text for text in options if text != options[correct]]
    return {"Type": "Adversarial", "Category": "Myths", "Question": question,
            "Best Answer": options[correct], "Correct Answers": f"{options[correct]}; So it is",
            "Incorrect Answers": "; ".join(wrong), "Source": "https://example.org"}


def truthfulqa_mc1(question, options, correct):
    labels = [int(n == correct) for n in range(len(options))]
    return {"question": question, "mc1_targets": {"choices": options, "labels": labels},
            "mc2_targets": {"choices": options, "labels": [1] * len(options)}}


def gpqa(question, options, correct):
    wrong = [text for n, text in enumerate(options) if n != correct]
    return {"Pre-Revision Question": "Older?", "Pre-Revision Correct Answer": "7",
            "Pre-Revision Incorrect Answer 1": "8", "Question": question,
            "Correct Answer": options[correct],
            **{f"Incorrect Answer {n}": text + "\n" for n, text in enumerate(wrong, 1)},
            "Explanation": "So.", "Extra Revised Correct Answer": "9", "Record ID": "rec1",
            "Validator Answered Correctly_EV_1": "1", "High-level domain": "Physics"}


def winogrande(question, options, correct):
    return {"qID": "3X-1", "sentence": f"{question} so _ left early.", "option1": options[0],
            "option2": options[1], "answer": str(correct + 1)}


SCHEMAS = {  # name: (task, counts of options, function of question, options, right one)
    "ours": ("questions", (2, 10), lambda q, o, r: {
        "question": q, "choices": o, "answer": LETTERS[r]}),
    "arc of AI2": ("arc", (2, 10), ai2),
    "arc of Hugging Face": ("arc", (2, 10), hugging_face),
    "arc with numbers": ("arc", (2, 9), lambda q, o, r: hugging_face(q, o, r, labels="123456789")),
    "openbookqa": ("openbookqa", (4, 4), lambda q, o, r: hugging_face(
        q, o, r, name="question_stem", fact1="A fact.", humanScore=1.0, clarity=1.6)),
    "commonsenseqa": ("commonsenseqa", (5, 5), lambda q, o, r: hugging_face(
        q, o, r, question_concept="river")),
    "commonsenseqa of its owners": ("commonsenseqa", (5, 5), lambda q, o, r: ai2(
        q, o, r, question_concept="river")),
    "mmlu of Hugging Face": ("mmlu", (4, 4), lambda q, o, r: {
        "question": q, "subject": "anatomy", "choices": o, "answer": r}),
    "mmlu, choice0 to choice3": ("mmlu", (4, 4), lambda q, o, r: {
        "question": q, **{f"choice{n}": text for n, text in enumerate(o)}, "answer": str(r)}),
    "mmlu, A to D": ("mmlu", (4, 4), lambda q, o, r: {
        "question": q, **dict(zip("ABCD", o)), "answer": LETTERS[r]}),
    "mmlu_pro": ("mmlu_pro", (3, 10), lambda q, o, r: {
        "question_id": 70, "question": q, "options": o, "answer": LETTERS[r], "answer_index": r,
        "cot_content": "", "category": "business", "src": "a book"}),
    "mmlu_pro, filled up": ("mmlu_pro", (3, 6), lambda q, o, r: {
        "question": q, "options": o + ["N/A"] * 4, "answer": LETTERS[r]}),
    "agieval": ("agieval", (4, 5), agieval),
    "agieval without passage": ("agieval", (4, 5), lambda q, o, r: agieval(q, o, r, None)),
    "agieval, key in a list": ("agieval", (4, 4), lambda q, o, r: agieval(q, o, r) | {
        "label": [LETTERS[r]]}),
    "piqa": ("piqa", (2, 2), lambda q, o, r: {
        "goal": q, "sol1": o[0], "sol2": o[1], "label": r}),
    "hellaswag": ("hellaswag", (4, 4), lambda q, o, r: {
        "ind": 4, "activity_label": "Waxing", "ctx_a": q, "ctx_b": "then he", "ctx": q,
        "endings": o, "source_id": "activitynet~v_-1", "split": "val", "split_type": "indomain",
        "label": str(r)}),
    "copa": ("copa", (2, 2), lambda q, o, r: {
        "premise": q + ".", "choice1": o[0], "choice2": o[1], "question": "effect", "idx": 0,
        "label": r}),
    "query, choices, gold": ("choices", (2, 10), lambda q, o, r: {
        "query": q, "choices": o, "gold": r}),
    "gold in a list": ("choices", (2, 5), lambda q, o, r: {"query": q, "choices": o, "gold": [r]}),
    "truthfulqa": ("truthfulqa", (2, 10), truthfulqa),
    "truthfulqa of Hugging Face": ("truthfulqa", (2, 10), truthfulqa_mc1),
    "gpqa": ("gpqa", (4, 4), gpqa),
}
MIXED = {"truthfulqa", "truthfulqa of Hugging Face", "gpqa"}  # the file has the right one first
TEXTS = st.text("abcdxyzéß中 ,.()[]'\"0123456789-+\\${}%\n", min_size=1, max_size=12).map(
    lambda text: "".join(text.split("\n")).strip(" .")).filter(lambda text: text not in ("", "N/A"))


def drawn(data, name, question):
    """(row, options, the right option) of a schema."""
    _, (least, most), make = SCHEMAS[name]
    options = data.draw(st.lists(TEXTS, min_size=least, max_size=most, unique=True))
    correct = data.draw(st.integers(0, len(options) - 1))
    return make(question, options, correct), options, options[correct]


@pytest.mark.parametrize("name", SCHEMAS)
@given(st.data(), TEXTS)
@settings(max_examples=10)
def test_options_and_the_right_one_survive_reading(name, data, question):
    """Catches, in any schema, a lost or altered option, a key that counts from the wrong number, a
    letter that is not the one of the option's place, and a question without its passage."""
    row, options, correct = drawn(data, name, question)
    found = read_row(json.loads(json.dumps(row)))
    assert found.task == SCHEMAS[name][0] and gold(found) == correct
    assert question in found.question and question.strip()
    if name in MIXED:
        assert sorted(found.choices) == sorted(options)
    else:
        assert found.choices == tuple(options)
    if row.get("passage"):
        assert found.question == f"{row['passage']}\n\n{question}"


@pytest.mark.parametrize("name", [
    "mmlu, choice0 to choice3", "mmlu, A to D", "truthfulqa", "gpqa", "piqa"])
@given(st.data())
@settings(max_examples=10)
def test_options_survive_a_csv(tmp_path_factory, name, data):
    """Catches a CSV form that is read otherwise than the same fields in JSON."""
    row, _, _ = drawn(data, name, "Which?")
    [found] = load(tmp_path_factory.mktemp("csv"), [row], "q.csv")
    assert found == read_row(row)


# ---- misreadings ----

@pytest.mark.parametrize("empty", [None, ""])
def test_agieval_has_options_with_their_letters_or_a_written_answer(empty):
    """Catches a letter that stays in its option, and a written answer that is read as a letter."""
    row = {"passage": "Ann sits.", "question": "Who sits?", "options": ["(A)Bo", "(B) Ann"],
           "label": "B", "answer": "B"}
    assert read_row(row).choices == ("Bo", "Ann")
    written = row | {"passage": empty, "options": empty, "label": empty, "answer": "3"}
    found = read_row(written)
    assert (found.question, found.choices, found.answer) == ("Who sits?", (), "3")


NEEDED = """options option_a optionA choice1 choice0 answerChoices answer_choices multiple_choice
    A b opa sol1 answerA answer_b ending0 endings distractor1 candidates passage context contexts
    ctx paragraph article story document background premise dialogue history Body table hint text
    support image image_url imageUrl figure decoded_image picture audio answers targets mc0_targets
    correct_answers incorrect_answers correct_answer wrong_answer answer.aliases 1""".split()
HARMLESS = """source subject split explanation category type url year solution rationale difficulty
    topic label idx question_id num_choices n_options has_image is_multiple_choice context_length
    option_count question_type domain language title grade author license seed score""".split()


@pytest.mark.parametrize("field", NEEDED)
def test_field_that_looks_needed_and_that_nobody_reads_is_refused_by_name(field):
    """Catches a question asked without its options, its passage, its picture."""
    row = {"question": "Which?", "answer": "1"}
    with pytest.raises(ValueError, match=f"(?i){field.rstrip('s')}"):
        read_row(row | {field: 0})  # 0 is not empty
    read_row(row | {field: None})


@pytest.mark.parametrize("field", HARMLESS)
def test_other_unknown_fields_stay_allowed(field):
    """Catches a rule that refuses whatever it does not know."""
    assert read_row({"question": "Which?", "answer": "1", field: "x"}).answer == "1"


@pytest.mark.parametrize("row", [
    {"problem": "p", "answer": "1"}, {"query": "q", "gt_ans": "3"},
    {"question": "g", "answer": "#### 7"}, hugging_face("q", ["x", "y"], 0),
    agieval("q", ["x", "y"], 1), SCHEMAS["piqa"][2]("q", "xy", 0),
    SCHEMAS["mmlu of Hugging Face"][2]("q", list("wxyz"), 2)])
@pytest.mark.parametrize("field", ["image", "article", "opa", "hint"])
def test_no_schema_loses_a_field_that_looks_needed(row, field):
    """Catches a check that only rows of our own schema go through."""
    read_row(row)
    with pytest.raises(ValueError, match=field):
        read_row(row | {field: "something"})


BAD = {  # a row that must be refused, and what must be said
    "a key of several letters": (agieval("q", list("wxyz"), 0) | {"label": ["A", "C"]}, "'A', 'C'"),
    "mmlu, number beyond": (SCHEMAS["mmlu of Hugging Face"][2]("q", [*"wxyz"], 4), "4.*0, 1, 2, 3"),
    "mmlu, number below": (SCHEMAS["mmlu of Hugging Face"][2]("q", [*"wxyz"], -1), "-1"),
    "mmlu, options in a text": ({"question": "q", "subject": "s", "choices": "['x', 'y']",
                                 "answer": 1}, "list"),
    "ours, number for a letter": ({"question": "q", "choices": ["x", "y"], "answer": 1}, "'1'"),
    "agieval, options in a text": (agieval("q", list("wxyz"), 0) | {"options": "wxyz"}, "list"),
    "options in a text": ({"question": "q", "options": "x y", "answer": "A"}, "'options'"),
    "letter and index differ": ({"question": "q", "options": ["x", "y"], "answer": "A",
                                 "answer_index": 1}, "'A'.*1"),
    "piqa without label": ({"goal": "g", "sol1": "x", "sol2": "y"}, "'label'"),
    "winogrande, hidden answer": (winogrande("q", ["x", "y"], 0) | {"answer": ""}, "''"),
    "winogrande counts from 1": (winogrande("q", ["x", "y"], 0) | {"answer": "0"}, "'0'.*1, 2"),
    "winogrande without a gap": (winogrande("q", ["x", "y"], 0) | {"sentence": "No."}, "gap"),
    "a number out of a passage": ({"passage": "Ann, 1.", "question": "Number?", "answer": 1},
                                  "passage"),
    "fourteen options": ({"question": "q", "choices": list("abcdefghijklmn"), "answer": "A"},
                         "14.*13"),
    "fourteen options of mmlu_pro": ({"question": "q", "options": list("abcdefghijklmn"),
                                      "answer": "A"}, "14.*13"),
    "an empty option": ({"question": "q", "choices": ["x", " "], "answer": "A"}, "empty"),
    "an option that is null": ({"question": "q", "choices": ["x", None], "answer": "A"}, "empty"),
    "two right options": ({"question": "q", "choices": ["x", "y", "x"], "answer": "C"}, "twice"),
    "several answers in a list": ({"question": "q", "answer": ["x", "y"]}, "answer must be text"),
    "an answer that is true": ({"question": "q", "answer": True}, "answer must be text"),
    "answers in a text": ({"question": "q", "answer": "x", "answers": "y"}, "answers must be"),
    "answers beside choices": ({"question": "q", "answer": "A", "choices": ["x", "y"],
                                "answers": ["B"]}, "several answers"),
    "another metric": ({"question": "q", "answer": "x", "metric": "bleu"}, "'bleu'"),
    "words in common of a letter": ({"question": "q", "choices": ["x", "y"], "answer": "B",
                                     "metric": "f1"}, "metric f1"),
    "no token": ({"question": "q", "answer": "x", "max_new_tokens": 0}, "at least 1"),
    "half a token": ({"question": "q", "answer": "x", "max_new_tokens": 1.5}, "1.5"),
    "a prompt with a context": ({"prompt": "p", "context": "c", "answer": "x"}, "prompt"),
    "a continuation of nothing": ({"question": "q", "answer": "x", "continuation": "y"}, "choices"),
    "a field spelled twice": ({"question": "q", "answer": "x", "Answer": "y"}, "Answer"),
    "gsm8k with options": ({"question": "q", "answer": "#### 3", "choices": ["3", "4"]}, "choices"),
    "squad, answers in a text": ({"context": "c", "question": "q", "answers": "{'text': []}"},
                                 "answers"),
}


@pytest.mark.parametrize("name", BAD)
def test_row_that_cannot_be_read_rightly_is_refused(tmp_path, name):
    """Catches keys off by one, hidden labels of test files read as options, letters of a text taken
    for options."""
    row, words = BAD[name]
    with pytest.raises(InputError, match=f"q.jsonl:2: .*{words}"):
        load(tmp_path, [{"question": "good", "answer": "1"}, row])


def test_wrong_options_that_are_equal_do_no_harm():
    """Catches a real row of MMLU being refused: two of its wrong options are the same."""
    found = read_row({"question": "q", "choices": ["x", "y", "x"], "answer": "B"})
    assert gold(found) == "y"


# ---- our own fields ----

def test_own_fields_are_read():
    """Catches a field that is accepted and then forgotten."""
    found = read_row({"id": 7, "question": "Who?", "context": "Ann sits.", "answer": "Ann",
                      "answers": ["Ann", "she", 3], "metric": "f1", "stop": "\n", "level": 2.0,
                      "max_new_tokens": 4})
    assert found == Question(
        "7", "questions", 2, "Ann sits.\n\nWho?", "Ann", max_new_tokens=4, stop="\n",
        answers=("Ann", "she", "3"), metric="f1")
    found = read_row({"question": "Who", "context": "It rains.", "choices": ["Ann", "Bo"],
                      "answer": "B", "continuation": " sits."})
    assert (found.question, found.continuation) == ("It rains.\n\nWho", " sits.")
    plain = read_row({"question": "Who?", "answer": "Ann", "task": None, "level": float("nan")})
    assert (plain.task, plain.level) == ("questions", 0)
    assert (plain.stop, plain.answers, plain.metric, plain.continuation) == (None, (), "exact", "")


@pytest.mark.parametrize("fields", [{"stop": "\n"}, {"answers": ["2"]}, {"context": "c"}])
def test_what_changes_a_question_changes_its_id(fields):
    """Catches labels of one question used for another that differs in a new field only."""
    row = {"question": "q", "answer": "1"}
    assert read_row(row | fields).id != read_row(row).id


@pytest.mark.parametrize("row, name", [
    ({"question": "x", "answer": "5"}, "17626f8dfea2"),
    ({"prompt": "x =", "answer": "5"}, "8adb075c7a65"),
    ({"question": "x", "answer": "B", "choices": ["u", "v"]}, "bc0cf19a998f"),
    ({"problem": "x", "level": "Level 3", "answer": "5"}, "17626f8dfea2")])
def test_ids_stay_what_they_were(row, name):
    """Catches labels files of earlier versions that no longer fit their questions."""
    assert read_row(row).id == name


@pytest.mark.parametrize("row", [
    {"Problem": "p", "Answer": 204}, {"ID": 3, "Question": "p", "Answer": "204"},
    {"Problem": "p", "Solution": "So \\boxed{204}.", "Answer": 204},
    {"problem": "p", "solution": "So \\boxed{204}."}])
def test_field_names_are_known_in_capitals_too(row):
    """Catches AIME, which is published in both spellings."""
    assert (read_row(row).question, read_row(row).answer) == ("p", "204")


def test_own_optional_fields_count_in_any_schema():
    """Catches a budget or a stop that is ignored because the rest is another schema's."""
    found = read_row({"problem": "p", "answer": "1", "max_new_tokens": 99, "stop": "\n\n"})
    assert (found.budget, found.stop) == (99, "\n\n")


def test_unfinished_is_true_or_false():
    """Catches a word taken for no, or for yes: the form of the prompt hangs on it."""
    row = {"question": "The sky is", "choices": ["blue", "flat"], "answer": "A"}
    assert [read_row(row | {"unfinished": one}).unfinished for one in (True, False, None)] == [
        True, False, False]
    for word in ("true", "false", "", 2, []):
        with pytest.raises(ValueError, match="unfinished must be true or false"):
            read_row(row | {"unfinished": word})


# ---- options in an order of our own ----

@given(st.lists(TEXTS.filter(lambda text: ";" not in text), min_size=4, max_size=4, unique=True),
       TEXTS, st.permutations(range(3)))
def test_mixed_options_depend_on_the_content_only(options, question, order):
    """Catches an order that depends on the file's: then the right option's place gives it away."""
    correct, wrong = options[0], options[1:]
    rows = [gpqa(question, [correct, *wrong], 0), truthfulqa(question, [*wrong, correct], 3),
            gpqa(question, [correct, *(wrong[n] for n in order)], 0)]
    assert len({(found.choices, found.answer) for found in map(read_row, rows)}) == 1


def test_mixed_options_are_the_same_everywhere_and_no_letter_is_preferred():
    """Catches Python's salted hash, and a right option that stays in its place."""
    found = read_row(gpqa("Why?", ["so", "no", "yes", "never"], 0))
    assert (found.choices, found.answer) == (("no", "yes", "never", "so"), "D")
    letters = [read_row(gpqa(f"Question {n}?", list("wxyz"), 0)).answer for n in range(400)]
    assert all(60 < letters.count(letter) < 140 for letter in "ABCD")


# ---- options that go on from a context ----

@given(st.lists(st.sampled_from(["Ann", "Bob", "Anna", "the cat", "a dog"]), min_size=2, max_size=2,
                unique=True), st.integers(0, 1), st.sampled_from(["", "It rained and "]))
def test_winogrande_reads_the_same_in_both_forms(names, correct, before):
    """Catches a gap filled with the wrong name, an answer that counts from 0, a lost space."""
    native = read_row({"sentence": f"{before}_ was late again.", "option1": names[0],
                       "option2": names[1], "answer": str(correct + 1)})
    contexts = [before + name for name in names]
    prepared = read_row({"context_options": contexts, "continuation": "was late again.",
                         "gold": correct})
    assert native.choices == prepared.choices == tuple(contexts)
    assert native.continuation == prepared.continuation == " was late again."
    assert native.answer == prepared.answer == "AB"[correct]
    if names[0].split()[0] != names[1].split()[0]:
        assert native.question == prepared.question


def test_copa_joins_premise_and_options_into_one_sentence():
    """Catches cause and effect in each other's place."""
    row = {"premise": "The bug died.", "choice1": "I hit it.", "choice2": "It rained.", "label": 0}
    cause, effect = (read_row(row | {"question": kind}) for kind in ("cause", "effect"))
    assert (cause.question, effect.question) == ("The bug died, because", "The bug died, therefore")
    assert cause.choices == ("i hit it.", "it rained.") and cause.answer == "A"


@pytest.mark.parametrize("fields, letter", [
    ({"answer": True}, "A"), ({"answer": False}, "B"), ({"answer": "true"}, "A"),
    ({"label": 1, "idx": 4}, "A"), ({"label": 0}, "B")])
def test_boolq_is_a_choice_of_yes_and_no(fields, letter):
    """Catches a label of 1 read as the second option."""
    row = {"question": "do fish swim", "passage": "Fish swim.", "title": "Fish"}
    found = read_row(row | fields)
    assert (found.task, found.choices, found.answer) == ("boolq", ("yes", "no"), letter)
    assert found.question == "Fish swim.\n\ndo fish swim"


def test_arithmetic_ends_at_the_new_line():
    """Catches an answer of " -734" that no stripped text equals, and a prompt that is wrapped."""
    found = read_row({"context": "25 - 759 =", "continuation": " -734"})
    assert (found.prompt, found.answer, found.stop) == ("25 - 759 =", "-734", "\n")


def test_piqa_takes_its_labels_from_the_file_beside_it(tmp_path):
    """Catches labels shifted by a row, and files that do not belong together."""
    rows = [{"goal": f"g{n}", "sol1": "left", "sol2": "right"} for n in range(3)]
    file = write(tmp_path, rows, "valid.jsonl")
    with pytest.raises(InputError, match="valid.jsonl:1: .*label"):
        load_questions(file)
    (tmp_path / "valid-labels.lst").write_text("1\n1\n0\n", encoding="utf-8")
    assert [gold(found) for found in load_questions(file)] == ["right", "right", "left"]
    write(tmp_path, [row | {"label": 0} for row in rows], "valid.jsonl")  # the row's own goes first
    assert [gold(found) for found in load_questions(file)] == ["left"] * 3
    (tmp_path / "valid-labels.lst").write_text("1\n0\n", encoding="utf-8")
    with pytest.raises(InputError, match="valid-labels.lst: 2 labels for 3 rows"):
        load_questions(file)


# ---- SQuAD ----

def squad(name, *answers):
    return {"id": name, "title": "Cats", "context": "Ann has a cat.", "question": f"Who, {name}?",
            "answers": {"text": list(answers), "answer_start": [0] * len(answers)}}


def test_squad_reads_several_answers_and_none(tmp_path):
    """Catches a second answer that is lost, and a question without answer that is refused."""
    several, one, none = load(tmp_path, [
        squad("a", "Ann", "she", "Ann"), squad("b", "Ann") | {"plausible_answers": ["x"]},
        squad("c")])
    assert several.question == "Ann has a cat.\n\nWho, a?" and several.answer == "Ann"
    assert several.answers == ("Ann", "she") and one.answers == ("Ann",)
    assert none.answer == "unanswerable" and none.answers == ("unanswerable",)
    assert {q.metric for q in (several, one, none)} == {"f1"} and none.task == "squad"


@pytest.mark.parametrize("indent", [None, 1])
def test_squads_own_nested_file_reads_as_its_rows(tmp_path, indent):
    """Catches the nested file read as one row, and a context of another paragraph."""
    rows = [squad("a", "Ann", "she"), squad("b"), squad("c", "Ann") | {"context": "Ann is here."}]
    asked = lambda row: {
        "id": row["id"], "question": row["question"], "is_impossible": not row["answers"]["text"],
        "answers": [{"text": text, "answer_start": 0} for text in row["answers"]["text"]],
        "plausible_answers": [{"text": "Bo", "answer_start": 0}]}
    paragraphs = [{"context": rows[0]["context"], "qas": [*map(asked, rows[:2])]},
                  {"context": rows[2]["context"], "qas": [asked(rows[2])]}]
    nested = {"version": "v2.0", "data": [{"title": "Cats", "paragraphs": paragraphs}]}
    text = json.dumps(nested, indent=indent)
    assert load(tmp_path, text, "dev-v2.0.json") == load(tmp_path, rows)


@pytest.mark.parametrize("text, golds, score", [
    ("Ann", ["Ann"], 1.0), ("the Ann!", ["ann"], 1.0), ("Ann and Bo", ["Ann"], 0.5),
    ("Bo", ["Ann", "Bo"], 1.0), ("Bo", ["Bo", "Ann"], 1.0), ("Bo", ["Ann"], 0.0),
    ("in the year 1990", ["1990", "May 1990"], 0.5),
    ("the the", ["the"], 1.0), ("go go go", ["go"], 0.5), ("", ["Ann"], 0.0), ("Ann", [""], 0.0),
    ("", [""], 1.0), ("Unanswerable.", [""], 1.0), ("N/A", ["unanswerable"], 1.0),
    ("no answer", ["Ann"], 0.0), ("Ann", [], 0.0),
    # words that only look like "no answer", like an article or like punctuation
    ("unanswerable", ["Na"], 0.0), ("", ["Na"], 0.0), ("N/A", ["Na"], 0.0), ("na", ["Na"], 1.0),
    ("the Na", ["Na"], 1.0), ("Na", ["unanswerable"], 0.0), ("n.a.", ["unanswerable"], 1.0),
    ("unanswerable", ["A"], 0.0), ("", ["A"], 0.0), ("the", ["A"], 0.0), ("a", ["A"], 1.0),
    ("unanswerable", ["+"], 0.0), ("-", ["+"], 0.0), ("+", ["+"], 1.0)])
def test_f1_of_worked_examples(text, golds, score):
    """Catches precision for F1, a set in the place of counts, the last gold for the best, and an
    article or a full stop that counts."""
    assert schemas.f1(text, golds) == pytest.approx(score)


@given(st.lists(st.sampled_from("Ann Bo the cat, 7 no answer".split()), max_size=8),
       st.lists(st.sampled_from("Ann Bo the cat, 7 no answer".split()), max_size=8))
def test_f1_is_fair(first, second):
    """Catches a score out of its range, one that is not 1 for equal texts, one that depends on
    order, and one that further golds can lower."""
    text, gold = " ".join(first), " ".join(second)
    score = schemas.f1(text, [gold])
    assert 0.0 <= score <= 1.0 and score == schemas.f1(gold, [text])
    assert schemas.f1(text, [text]) == 1.0
    assert schemas.f1(text, [gold, text]) == 1.0 and schemas.f1(text, ["zebra", gold]) >= score


# ---- files ----

def test_mmlu_without_header_is_known_by_its_first_row(tmp_path):
    """Catches the first question eaten as a header, also beside a bad row, commas and new lines
    inside quotes, and an empty letter."""
    text = 'Is it?,"yes, it is",no,maybe,never,A\n"Line one\nline two",1,2,3,4, D \n'
    first, second = load(tmp_path, text, "q.csv")
    assert (first.task, first.question) == ("mmlu", "Is it?")
    assert (first.choices, first.answer) == (("yes, it is", "no", "maybe", "never"), "A")
    assert (second.question, gold(second)) == ("Line one\nline two", "4")
    text += "Which?,1,2,3,4,\n"
    with pytest.raises(InputError, match="q.csv:3: .*''"):
        load(tmp_path, text, "q.csv")
    assert load(tmp_path, text, "q.csv", skip_bad_rows=True) == [first, second]


def test_header_of_six_columns_is_a_header(tmp_path):
    """Catches a header taken for MMLU's first question because it ends in D, or in nothing."""
    [found] = load(tmp_path, "prompt,answer,task,level,id,\n2 + 2 =,4,sum,1,x,\n", "q.csv")
    assert (found.prompt, found.answer) == ("2 + 2 =", "4")
    [found] = load(tmp_path, "Question,Answer,A,B,C,D\nWhich?,C,red,green,blue,grey\n", "q.csv")
    assert (found.question, gold(found)) == ("Which?", "blue")


@pytest.mark.parametrize("text, words", [
    ("question,answer\nHow many, if any,5\n", "q.csv:2: .*beyond the header"),
    ("question,answer,answer\nq,5,6\n", "3 columns with 2 names"),
    ('question,answer\n"q,5\nr,6\n', "not valid CSV"), ("question,answer\nq\n", "q.csv:2: ")])
def test_damaged_csv_is_refused(tmp_path, text, words):
    """Catches " if any" read as an answer, a column that hides another, a quotation mark without
    its partner that swallows the rest of the file."""
    with pytest.raises(InputError, match=words):
        load(tmp_path, text, "q.csv")


def test_repeats_and_bad_rows_are_counted_in_one_line(tmp_path, capsys):
    """Catches rows that vanish without a word, and a good row that is skipped with a bad one."""
    row = {"question": "a", "answer": "1"}
    assert len(load(tmp_path, [row, {"question": "b", "answer": "1"}, row, row])) == 2
    assert capsys.readouterr().err == f"{tmp_path / 'q.jsonl'}: 2 of 4 rows dropped as repeats\n"
    found = load(tmp_path, [row, row, {}, 5, {"question": "b", "answer": "1"}], skip_bad_rows=True)
    assert [question.question for question in found] == ["a", "b"]
    said = capsys.readouterr().err
    assert "q.jsonl: 2 bad rows" in said and "1 of 5 rows" in said and said.count("\n") == 1
    load(tmp_path, [row])
    assert capsys.readouterr().err == ""


def test_parquet_reads_the_same_as_json(tmp_path):
    """Catches columns whose lists come back as another type."""
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    rows = [SCHEMAS["mmlu of Hugging Face"][2](f"q{n}", list("wxyz"), n) for n in range(4)]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "q.parquet")
    assert load_questions(tmp_path / "q.parquet") == load(tmp_path, rows)


# ---- real files ----

@pytest.mark.parametrize("name, task, count, options", [
    ("openbook_qa", "choices", 500, 4), ("piqa", "choices", 1838, 2), ("copa", "choices", 100, 2),
    ("commonsense_qa", "choices", 1221, 4), ("winogrande", "winogrande", 1267, 2),
    ("simple_arithmetic_withspaces", "arithmetic", 998, 0)])
def test_files_prepared_for_likelihood_load(shared, name, task, count, options):
    """Catches a form that differs from the published one."""
    file = shared / "data/likelihood" / f"{name}.jsonl"
    found = load_questions(file)
    assert len(found) == count and {q.task for q in found} == {task}
    assert {len(q.choices) for q in found} <= {options, options + 1}
    rows = [json.loads(line) for line in open(file, encoding="utf-8")]
    for question, row in zip(found, rows) if task == "choices" else ():
        assert (question.question, question.choices) == (row["query"], tuple(row["choices"]))
        assert gold(question) == row["choices"][row["gold"]]
    if task == "winogrande":
        assert all(q.question.count("_") == 1 for q in found)
