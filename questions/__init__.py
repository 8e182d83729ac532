"""Reads question files of many formats, writes the prompts, and grades answers; independent of the
model.

    load_questions("demo/questions/test.jsonl")[0].prompt
"""
from questions.grading import answers_equal
from questions.loading import Question, load_questions
from questions.reward import grade

__all__ = ["Question", "answers_equal", "grade", "load_questions"]
