"""The text that a model is given for a question (paper Appendix A), and how its answer begins.

Prompts go through the chat template if the folder has one; otherwise a base prompt is used, in
which the answer has already begun. Multiple choice is answered by a letter; anything else inside
\\boxed{}.
"""
from functools import cache

from questions.loading import OPENED
from questions.schemas import LETTERS
from storage.files import InputError

CHAT_LETTER = """Question: {question}
{choices}
Answer with a single letter ({letters}) and no explanation. Your answer should start with \
"Answer: " and be followed by the letter of the answer you choose. Do not include any other text \
in your response."""
CHAT_BOXED = """Question: {question}
The final answer MUST BE put in \\boxed{{}} and no explanation."""
BASE_LETTER = """Question: {question}

{choices}

Answer: The correct answer is"""
BASE_BOXED = """Question: What is $2 + 3$?
Answer: \\boxed{{5}}

Question: What is $10 \\div 2$?
Answer: \\boxed{{5}}

Question: {question}
Answer: \\boxed{{"""


def prompt_ids(question, tokenizer):
    """The token ids a model is given for a question that it answers in writing."""
    if question.prompt is not None:
        return tokenizer.encode(question.prompt)
    if not tokenizer.has_template:
        if question.begin:
            raise InputError(f"{tokenizer.folder}: no chat template that --begin could continue")
        return tokenizer.encode(question_text(question, BASE_LETTER, BASE_BOXED, "({}) {}"))
    content = question_text(question, CHAT_LETTER, CHAT_BOXED, "{}. {}")
    return chat_ids(content, question.begin, tokenizer)


@cache
def chat_ids(content, begin, tokenizer):
    """The ids of a user's message in the chat template, a program that is slow to run, so that each
    message is rendered once. begin: the beginning of the answer, or None."""
    return tuple(tokenizer.chat([{"role": "user", "content": content}], begin))


def question_text(question, letter_form, boxed_form, option_form):
    """The question's text in the form for multiple choice, or in the form for anything else."""
    if not question.choices:
        return boxed_form.format(question=question.question)
    letters = LETTERS[:len(question.choices)]
    choices = "\n".join(option_form.format(*pair) for pair in zip(letters, question.choices))
    list_of_letters = ", ".join(letters[:-1]) + f" or {letters[-1]}"
    return letter_form.format(question=question.question, choices=choices, letters=list_of_letters)


def gold_ids(question, tokenizer):
    """The gold answer's token ids as a model would most likely write it, cut to its budget: a
    guess, which is compared with what the model writes and never taken for it."""
    for text in gold_spellings(question, tokenizer):
        ids = tokenizer.encode(text, add_special_tokens=False)
        if without_blanks(tokenizer.decode(ids)) == without_blanks(text):
            break
    return ids[:question.budget]


def gold_spellings(question, tokenizer):
    """How a model may write the gold answer, the likeliest first."""
    is_chat = question.prompt is None and tokenizer.has_template
    if question.choices:
        return [question.answer if is_chat else f" {question.answer}"]
    if question.stop:
        needs_space = question.prompt and not question.prompt[-1].isspace()
        return [(" " if needs_space else "") + question.answer + question.stop]
    if is_chat and OPENED not in question.begin:
        return [OPENED + question.answer + "}"]
    if question.prompt is None or question.prompt.rstrip().endswith(OPENED):
        return [question.answer + "}", question.answer + " }"]  # some tokenizers split at spaces
    return [question.answer]


def without_blanks(text):
    return "".join(text.split())
