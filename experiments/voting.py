"""Are several paths worth more than one? Their vote, and their disagreement as a warning.

Votes: eight answers along eight paths cost about as much as eight answers to forms of the question
(forms.py) along the default path. The answer with most votes wins; of several the one with the
higher sum of probabilities. The paths are the default path and the edits with the best mean effect
(edits.py) on every other question; the remaining questions are asked.

Confidence: is an answer of the base model more often correct if voters agree with it? AUROC is the
chance that a correct answer has a higher score than an incorrect one. The scores are the model's
own probability of its answer, and the shares of paths and of forms that agree with it.

Stop rule, fixed before anything was measured: nothing more is made of it, unless on two pretrained
models the vote of paths gains over the base model and over the vote of forms, or the agreement of
paths has a higher AUROC than the model's own probability; each with its 95% interval above 0.

    python -m experiments.voting --model DIR --out runs/routability    # whose edits are known
"""
import torch

import cli
from answers import cached_answer
from choose import SMALLEST_GROUP
from cli import aligned, percent, progress_bar, with_interval
from evaluate import interval
from experiments.edits import ask_edits, effects_of, single_edit_paths
from experiments.forms import add_flags, in_forms
from experiments.statistics import auroc, bootstrap
from model_llama import load
from questions.reward import extract_answer, with_beginning
from questions.schemas import LETTERS
from storage.answer_cache import AnswerCache
from storage.files import write_json

# N questions   V voters

VOTERS = 8


def meaning(text, question):
    """What an answer's text says; None if it says nothing. A letter stands for its option, which
    has other letters in other forms."""
    if question.stop:
        text = text.partition(question.stop)[0]
    answer = extract_answer(with_beginning(text, question), question)
    if question.choices and answer is not None:
        number = LETTERS.index(answer)
        return question.choices[number] if number < len(question.choices) else None
    return answer


def winner(meanings, probabilities):
    """The first voter (0..V-1) whose answer wins, for one question; 0 if nobody says anything."""
    weights = {}  # {answer: (votes, sum of probabilities)}
    for answer, probability in zip(meanings, probabilities):
        if answer is not None:
            votes, total = weights.get(answer, (0, 0.0))
            weights[answer] = votes + 1, total + probability
    return meanings.index(max(weights, key=weights.get)) if weights else 0


class Ballot:
    """The answers of V voters to N questions. prompts_of: each voter's prompts; answers: its
    answers.Answers. The first voter is the base model in the first form."""

    def __init__(self, prompts_of, answers):
        self.correct = torch.stack([(one.correct > 0).float() for one in answers])  # (V, N)
        self.blocks = torch.stack([one.blocks_run for one in answers]).sum(0).float()  # (N,) of all
        meanings = [[meaning(text, prompt.question) for text, prompt in zip(one.texts, prompts)]
                    for prompts, one in zip(prompts_of, answers)]
        probabilities = [one.confidence.tolist() for one in answers]
        winners = [winner(*given) for given in zip(zip(*meanings), zip(*probabilities))]
        self.vote = self.correct.T[range(len(winners)), winners]  # (N,) is the vote correct?
        agree = [[other is not None and other == base for other, base in zip(voter, meanings[0])]
                 for voter in meanings[1:]]
        self.agreement = torch.tensor(agree).float().mean(0)  # (N,) share of the other voters
        self.base_confidence = answers[0].confidence


def best_paths(model, prompts, cache, batch_size):
    """The default path and the edits with the best mean effect on these questions."""
    paths = single_edit_paths(model.config.num_layers)
    _, logprobs = ask_edits(model, prompts, paths, cache, batch_size)
    order = effects_of(logprobs)[:, 1:].mean(0).argsort(descending=True)
    return [paths[0], *(paths[1 + k] for k in order[:VOTERS - 1].tolist())]


def vote_row(name, correct, base, total_blocks):
    gain = correct - base
    return {"": name, "accuracy %": percent(correct.mean()), "blocks": f"{total_blocks.mean():.0f}",
            "gain": with_interval(gain.mean().item(), interval(gain))}


def confidence_row(name, scores, own, correct):
    """The AUROC of some scores, and by how much it is above that of the model's own."""
    value = lambda rows: auroc(scores[rows], correct[rows])
    above = lambda rows: value(rows) - auroc(own[rows], correct[rows])
    everything, number = torch.arange(len(correct)), len(correct)
    low, high = bootstrap(value, number)
    return {"": name, "AUROC": f"{value(everything):.3f} [{low:.3f}, {high:.3f}]",
            "above its own": with_interval(above(everything), bootstrap(above, number))}


def tables(of_paths, of_forms):
    """(rows on votes, rows on confidence) of two Ballots."""
    base, own = of_paths.correct[0], of_paths.base_confidence
    votes = [vote_row("base model", base, base, of_forms.blocks / VOTERS)]
    for name, ballot in (("paths", of_paths), ("forms", of_forms)):
        single = ballot.correct.mean(0)
        votes.append(vote_row(f"one of the {name}", single, base, ballot.blocks / VOTERS))
        votes.append(vote_row(f"vote of {VOTERS} {name}", ballot.vote, base, ballot.blocks))
    over = vote_row("vote of paths over that of forms", of_paths.vote, of_forms.vote, base)
    votes.append({key: over[key] for key in ("", "gain")})
    scores = {"its own probability": own, "agreement of paths": of_paths.agreement,
              "agreement of forms": of_forms.agreement}
    return votes, [confidence_row(name, score, own, base) for name, score in scores.items()]


# ---- the command ----

def main(argv=None):
    parser = cli.Parser(__doc__, prog="python -m experiments.voting")
    add_flags(parser, "runs/voting")
    args = parser.parse_args(argv)
    args.out.mkdir(parents=True, exist_ok=True)
    tokenizer, model = load(args)
    forms = in_forms(args, tokenizer, model, VOTERS, 2 * SMALLEST_GROUP)
    cache = AnswerCache(args.out / "answers.jsonl")
    paths = best_paths(model, forms[0][::2], cache, args.batch_size)
    asked = [prompts[1::2] for prompts in forms]

    def ballot(prompts_of, paths):
        answers = []
        for prompts, path in zip(prompts_of, paths):
            decisions = torch.tensor([path] * len(prompts))
            answers.append(cached_answer(cache, model, tokenizer, prompts, decisions,
                                         args.batch_size, bar.update))
        return Ballot(prompts_of, answers)

    with progress_bar(total=2 * VOTERS * len(asked[0]), desc="voters", unit="answer") as bar:
        of_paths = ballot([asked[0]] * VOTERS, paths)
        of_forms = ballot(asked, [paths[0]] * VOTERS)
    votes, confidence = tables(of_paths, of_forms)
    write_json(args.out / "voting.json", {"questions": len(asked[0]), "paths": paths,
                                          "votes": votes, "confidence": confidence})
    print(f"{len(asked[0])} questions; blocks: per answer, or of all {VOTERS} answers", "",
          aligned(votes), "", aligned(confidence), sep="\n")


if __name__ == "__main__":
    cli.run(main)
