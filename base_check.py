"""Before a search: what the base model can do.

A search needs questions that the model answers sometimes, and answers that depend on the path.
Otherwise it finds nothing, or only luck, and a run of hours is in vain. So the model answers a few
hundred questions first:

1. Without question files, arithmetic is made of those kinds that the model answers sometimes.
2. `check_base_model` says how often the model is correct, next to the chance of guessing. It also
   checks that another path changes the answers, and that they have a form that can be graded.

    python train.py --model DIR    # begins with both
"""
import math

import torch

import cli
from answers import cached_answer, cached_grade_paths, grade_paths, prepare
from cli import percent, progress_bar
from paths import DECISIONS, default_path
from questions.arithmetic import (ASKED_PER_KIND, BETWEEN, KINDS, arithmetic_questions,
                                  held_out_kinds, kinds_between, sample_of_every_kind,
                                  shares_of_kinds)
from questions.prompts import without_blanks
from questions.reward import extract_answer, with_beginning
from storage.files import InputError
from storage.processes import is_first
from storage.run_folder import read_kinds

# N questions   L layers

CHECKED = 32  # questions on which the form of answers, and whether paths matter, is checked
ASKED = 400  # questions on which accuracy is measured, at most: 95% intervals of 5 points
SOMETIMES = " to ".join(f"{share:.0%}" for share in BETWEEN)


# ---- without question files: arithmetic that suits the model ----

def make_arithmetic(args, tokenizer, model, folder=None, any_seed=False):
    """(training questions, test questions, kinds as storage.run_folder.read_kinds has them) of what
    the base model answers sometimes. folder: of a run; the kinds that it recorded (for this seed,
    or with any_seed for any) are used again. Otherwise the model is asked."""
    if args.begin or args.score != cli.SCORES[0]:
        raise InputError("--begin and --score are for questions of --data FILE; without it, "
                         "arithmetic is made, which has prompts of its own and no options")
    kinds = read_kinds(folder, model.fingerprint(), KINDS) if folder else None
    if not kinds or not (any_seed or kinds["seed"] == args.seed):
        kinds = {"seed": args.seed, "shares": ask_every_kind(args, tokenizer, model)}
    names = list(kinds["shares"])
    if is_first():
        held_out = ", ".join(held_out_kinds(names)) or "nothing, since there are few kinds"
        print("no --data, so arithmetic is made for this model, of kinds that it answers "
              f"{SOMETIMES} of ({ASKED_PER_KIND} problems each): {as_text(kinds['shares'])}. "
              f"Held out of training: {held_out}")
    return *arithmetic_questions(names, args.problems, kinds["seed"]), kinds


def ask_every_kind(args, tokenizer, model):
    """{kind: share of correct answers} of the kinds that the base model answers sometimes.
    InputError if there is none, or if the tokenizer cannot write digits."""
    otherwise = "--data FILE names other questions"
    digits = "0123456789"
    written = tokenizer.decode(tokenizer.encode(digits, add_special_tokens=False))
    if without_blanks(written) != digits:
        raise InputError(f"{args.model}: its tokenizer writes {digits} as {written!r}, so it "
                         f"cannot be asked arithmetic; {otherwise}")
    prompts, _ = prepare(sample_of_every_kind(args.seed), tokenizer, model)
    default = default_paths(model, prompts)
    with progress_bar(total=len(prompts), desc="asking every kind of arithmetic") as bar:
        correct, _ = grade_paths(model, tokenizer, prompts, default, args.batch_size, bar.update)
    shares = shares_of_kinds([prompt.question for prompt in prompts], correct.tolist())
    taken = kinds_between(shares)
    if not taken:
        raise InputError(f"{args.model}: answers {SOMETIMES} of no kind of arithmetic "
                         f"({as_text(shares)}); {otherwise}")
    return taken


def as_text(shares):
    """as_text({"add2": 0.333}) is "add2 33%"."""
    return ", ".join(f"{kind} {share:.0%}" for kind, share in shares.items())


# ---- how often is the base model correct? ----

def check_base_model(model, tokenizer, prompts, args, cache, refuse=False):
    """Prints how often the base model is correct on the first questions, next to chance. cache: an
    AnswerCache. InputError if paths change nothing and, with refuse, if chance explains the correct
    answers to multiple choice."""
    prompts = prompts[:ASKED]
    check_paths_matter(model, tokenizer, prompts[:CHECKED], cache)
    check_form(model, tokenizer, prompts[:CHECKED], cache)
    correct, _ = cached_grade_paths(cache, model, tokenizer, prompts, default_paths(model, prompts),
                                    args.batch_size)
    num_options = torch.tensor([len(prompt.question.choices) for prompt in prompts])
    for group in (num_options > 0, num_options == 0):  # multiple choice, and open questions
        if not group.any():
            continue
        sentence, is_luck = describe_base_score(correct[group], num_options[group],
                                                args.simulations + 1)
        if is_luck:
            likelihood = "--score likelihood, " if args.score == "letter" else ""
            sentence += (f". What a search finds is luck then. Use {likelihood}questions with "
                         "examples in their prompt, or a model that can do it")
        if is_luck and refuse:
            raise InputError(f"{args.model}: {sentence}; --force continues all the same")
        print(sentence)


def default_paths(model, prompts):
    """(N, L): the default path for each prompt."""
    return torch.tensor([default_path(model.config.num_layers)] * len(prompts))


def check_paths_matter(model, tokenizer, prompts, cache):
    """InputError if a path that skips, executes and repeats layers in turns gives every answer the
    probability that the default path gives it: then no search can find anything."""
    default = default_paths(model, prompts)
    in_turns = (torch.arange(model.config.num_layers) % len(DECISIONS)).expand_as(default)
    _, confidence = cached_grade_paths(cache, model, tokenizer, prompts, default)
    _, along_other = cached_grade_paths(cache, model, tokenizer, prompts, in_turns)
    if torch.equal(confidence, along_other):
        raise InputError(f"{len(prompts)} answers have the same probability along the default path "
                         "and along one that skips and repeats layers: paths change nothing here")


def check_form(model, tokenizer, prompts, cache):
    """Prints a hint if most answers of the base model, asked with its chat template, have no form
    that can be graded."""
    written = [prompt for prompt in prompts
               if prompt.question.prompt is None and not prompt.options]
    if not written or not tokenizer.has_template:
        return
    # each: label.py lets one process check alone
    texts = cached_answer(cache, model, tokenizer, written, None, each=map).texts
    formless = 0
    for text, prompt in zip(texts, written):
        whole = with_beginning(text, prompt.question)
        if extract_answer(whole, prompt.question) is None:
            formless += 1
    if formless > len(written) / 2:
        print(f"{formless} of {len(written)} answers of the base model have no letter or no box; "
              "--begin 'Answer: ' or --begin '\\boxed{' begins every answer with it")


def describe_base_score(correct, num_options, paths):
    """(a sentence on the base model's answers, whether chance explains them). correct (N,):
    rewards; num_options (N,): of each question, 0 if all are open; paths: tried per question."""
    share, number = correct.mean().item(), len(correct)
    if not num_options[0]:
        sentence = f"the base model answers {percent(share)}% of {number} open questions"
        if share == 0:
            sentence += (". Does it answer in the form asked for (a letter, \\boxed{})? "
                         "`python -m tools.explain` shows one answer")
        return sentence, False
    chance, half_interval = chance_of(num_options)
    sentence = (f"the base model answers {percent(share)}% of {number} multiple-choice "
                f"questions, chance {percent(chance)}% ± {percent(half_interval)}; of {paths} "
                f"paths per question luck alone makes {paths * chance:.0f} correct")
    return sentence, share <= chance + half_interval


def chance_of(num_options):
    """(share that guessing answers correctly, half of its 95% interval) of questions with so many
    options (N,) each."""
    chance = (1 / num_options).mean().item()
    return chance, margin(chance, len(num_options))


def margin(share, number):
    """Half the width of a 95% interval of a share that was measured on so many questions."""
    return 1.96 * math.sqrt(share * (1 - share) / number)
