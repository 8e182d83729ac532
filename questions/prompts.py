"""The text that a model is given for a question (paper Appendix A), and how the correct answer goes on.

Prompts go through the chat template if the folder has one; otherwise a base prompt is used, in
which the answer has already begun. Multiple choice is answered by a letter; anything else inside
\\boxed{}.
"""
from questions.loading import OPENED
from questions.schemas import LETTERS

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
    if tokenizer.has_template:
        content = _fill(question, CHAT_LETTER, CHAT_BOXED, "{}. {}")
        return tokenizer.chat([{"role": "user", "content": content}])
    return tokenizer.encode(_fill(question, BASE_LETTER, BASE_BOXED, "({}) {}"))


def _fill(question, letter_form, boxed_form, option_form):
    if not question.choices:
        return boxed_form.format(question=question.question)
    letters = LETTERS[:len(question.choices)]
    choices = "\n".join(option_form.format(*pair) for pair in zip(letters, question.choices))
    listed = ", ".join(letters[:-1]) + f" or {letters[-1]}"
    return letter_form.format(question=question.question, choices=choices, letters=listed)


def gold_ids(question, tokenizer):
    """The right answer's token ids as a model would most likely go on, cut to its budget: a guess,
    which is compared with what the model says and never taken for it."""
    is_chat = question.prompt is None and tokenizer.has_template
    space = " " if question.prompt and not question.prompt[-1].isspace() else ""
    if question.choices:
        forms = (question.answer if is_chat else f" {question.answer}",)
    elif question.stop:
        forms = (space + question.answer + question.stop,)
    elif is_chat:
        forms = (OPENED + question.answer + "}",)
    elif question.prompt is None or question.prompt.rstrip().endswith(OPENED):
        forms = (question.answer + "}", question.answer + " }")  # some tokenizers split at spaces
    else:
        forms = (question.answer,)
    for text in forms:
        ids = tokenizer.encode(text, add_special_tokens=False)
        if without_blanks(tokenizer.decode(ids)) == without_blanks(text):
            break
    return ids[:question.budget]


def without_blanks(text):
    return "".join(text.split())
