"""The same questions in several forms that should not matter.

What a path does to one question is partly luck: of the worked examples before it, or of the letter
that happens to be correct. Another form of the same question has other luck. Forms differ in

    the worked examples     of arithmetic made for a model, and of options compared by likelihood
    the order of options    of multiple choice that is answered by a letter

A question that has neither is in one form only.

    first, second = in_forms(args, tokenizer, model, 2, least=8)    # prompts
"""
import random
from dataclasses import replace
from pathlib import Path

import torch

import cli
from answers import FORM, prepare
from base_check import make_arithmetic
from experiments.edits import ask_edits, single_edit_paths
from questions.arithmetic import EXAMPLES, arithmetic_questions
from questions.loading import load_all
from questions.schemas import LETTERS
from storage.files import InputError
from storage.run_folder import write_kinds


def add_flags(parser, out):
    """The flags of a study that asks questions in several forms. out: its default folder."""
    cli.add_model_flags(parser)
    cli.add_data_flags(parser, [cli.DEMO_LABEL], batch_size=128)
    cli.add_own_model_flags(parser)
    parser.set_defaults(limit=300)
    parser.add_argument("--out", type=Path, default=Path(out), help="result folder")


def in_forms(args, tokenizer, model, number, least):
    """A list of prompts per form, --limit of them at most; all lists have the same questions in the
    same order. InputError if fewer than `least` questions have so many forms."""
    if cli.asks_arithmetic(args):
        forms = arithmetic_in_forms(args, tokenizer, model, number)
    else:
        questions = load_all(args.data, args.skip_bad_rows, args.score, args.begin)
        forms = questions_in_forms(questions, number)
        left_out = len(questions) - len(forms[0])
        if not forms[0]:
            raise InputError(f"{args.data[0]}: each of {len(questions)} questions has one form "
                             "only: neither worked examples nor options that could be in another "
                             f"order; this study compares {number} forms")
        if left_out:
            print(f"{left_out} of {len(questions)} questions are left out: they have one form "
                  "only, or serve as worked examples")
    forms = [prepare(questions[:args.limit], tokenizer, model)[0] for questions in forms]
    fits = set.intersection(*({prompt.question.id for prompt in prompts} for prompts in forms))
    if len(fits) < least:
        raise InputError(f"{args.model}: {len(fits)} questions in {number} forms; this study needs "
                         f"{least}")
    return [[prompt for prompt in prompts if prompt.question.id in fits] for prompts in forms]


def arithmetic_in_forms(args, tokenizer, model, number):
    """The training problems that train.py asks this model, after `number` pairs of examples."""
    training, _, kinds = make_arithmetic(args, tokenizer, model, args.out)
    write_kinds(args.out, model.fingerprint(), kinds)
    others = [arithmetic_questions(list(kinds["shares"]), args.problems, kinds["seed"], pair)[0]
              for pair in range(1, number)]
    return [training, *others]


def questions_in_forms(questions, number):
    """A list of Questions per form, of those that have `number` forms."""
    forms = [[] for _ in range(number)]
    examples_of = {}  # {task: its first questions, which are worked examples}
    for question in questions:
        examples = examples_of.setdefault(question.task, [])
        if question.metric.startswith("likelihood"):
            if len(examples) < EXAMPLES * number:
                examples.append(question)
                continue
            made = [after_examples(question, examples[EXAMPLES * form:EXAMPLES * (form + 1)])
                    for form in range(number)]
        else:
            made = [shuffled_options(question, form) for form in range(number)]
        if None not in made:
            for form, one in zip(forms, made):
                form.append(one)
    return forms


def after_examples(question, examples):
    """The question after worked examples; None if its text is no plain question."""
    if question.prompt is not None or question.continuation or question.unfinished:
        return None
    worked = ""
    for example in examples:
        answer = example.choices[LETTERS.index(example.answer)]
        worked += f"{FORM.format(question=example.question)} {answer}\n\n"
    return replace(question, prompt=worked + FORM.format(question=question.question))


def shuffled_options(question, form):
    """The question with its options in an order of that form, the file's own for form 0; None if it
    has no options, or a prompt of its own in which they are not found."""
    number = len(question.choices)
    if number < 2:
        return None
    order = list(range(number))
    if form:
        random.Random(f"{question.id}/{form}").shuffle(order)
        if order == sorted(order):
            order.reverse()
    return reordered(question, order)


def reordered(question, order):
    """The question with option order[k] at place k, the gold letter with it; None if its own prompt
    does not have each option once as "(A) text"."""
    choices = tuple(question.choices[option] for option in order)
    gold = order.index(LETTERS.index(question.answer))
    prompt = question.prompt
    if prompt is not None:
        for letter, old, new in zip(LETTERS, question.choices, choices):
            if prompt.count(f"({letter}) {old}") != 1:
                return None
            prompt = prompt.replace(f"({letter}) {old}", f"({letter}) {new}")
    return replace(question, choices=choices, answer=LETTERS[gold], prompt=prompt)


# ---- what paths do in every form ----

def ask_forms(model, forms, further, cache, batch_size=128):
    """(correct, log-probability of the correct answer), each (forms, N, K), see edits.py: of the
    default path, all single edits, and further paths. forms: a list of prompts each."""
    singles = single_edit_paths(model.config.num_layers)
    others = [path for path in further if path not in singles]
    of_forms = []
    for prompts in forms:
        asked = ask_edits(model, prompts, singles, cache, batch_size)
        if others:  # asked apart, so that they discard no edit that was asked without them
            more = ask_edits(model, prompts, [singles[0], *others], cache, batch_size)
            asked = torch.cat([asked, more[:, :, 1:]], dim=2)
        of_forms.append(asked)
    return torch.stack(of_forms, dim=1)
