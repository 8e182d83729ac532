"""Which layers to skip and repeat for one question: paths, and a length-aware tree search.

Paper §3.2 and Algorithm 1. A path is written as *decisions*, one of SKIP, EXECUTE, REPEAT per
layer. The search starts at the default path (every layer once), grows a tree of edits, and asks
for the reward of one new path per simulation; it never sees a model. It is a generator: drive it
alone, in lockstep with a thousand others, or with a table of rewards in a test.

Departures from the authors' code: the tree branches (theirs always extends its newest leaf) and
may grow by several edits at once; the visits under the logarithm are the parent's; no path is
asked twice, an illegal one never.

    search(12, SearchConfig(), random.Random(0))    # yields decisions, is sent a reward in [0, 1]
"""
import math
from dataclasses import dataclass

from paths import (DECISIONS, EXECUTE, REPEAT, SKIP, blocks, decisions_of, edits,  # noqa: F401
                   is_legal, path_of)


# ---- the tree ----

@dataclass(frozen=True)
class SearchConfig:
    """Algorithm 1's constants, and three of ours (the last ones)."""
    simulations: int = 50            # new paths asked after the default
    exploration: float = 1.8         # c
    length_penalty: float = 3.0      # lambda
    random_child: float = 0.1        # probability of descending to a random child
    stop_when_repaired: bool = True  # where the default is wrong, stop at the first right path
    widening: float = 0.5            # a node with v visits has about v ** widening good children
    stacking: float = 0.3            # chance that a child is one edit further, and again
    stacking_blind: float = 0.7      # the same while no path was right, and only reach can help


@dataclass(frozen=True)
class SearchResult:
    """best: the paper's label, None if no path was right. Where the default path is right it is
    the shortest right path, the earliest of equals; elsewhere the first right path met.
    rewards: {decisions: reward} of every path asked, in the order of asking."""
    best: tuple | None
    default_reward: float
    rewards: dict


class Node:
    """A path in the tree and its reward. visits counts its own evaluation and those below it."""

    def __init__(self, decisions, reward, parent):
        self.decisions, self.reward, self.parent = decisions, reward, parent
        self.children, self.visits, self.total_reward = [], 0, 0.0
        self.edits = edits(decisions)
        self.exhausted = False


def score(child, config):
    """UCB with a price for length: Q/v + c sqrt(ln V / v) - lambda |path| / L (paper Eq. 2); V are
    the parent's visits. Q=1, v=2, V=4, |path|=11, L=12: 0.5 + 1.8 * 0.8326 - 2.75 = -0.7514."""
    mean = child.total_reward / child.visits
    bonus = math.sqrt(math.log(child.parent.visits) / child.visits)
    length = sum(child.decisions) / len(child.decisions)
    return mean + config.exploration * bonus - config.length_penalty * length


def select(root, known, config, rng):
    """The node to give a new child, or None where every legal path has been asked. From the root
    down, this is the first with an edit nobody tried and room: a node with v visits may have
    v ** widening children that do no worse than it (progressive widening). A full node hands on
    to one of its children."""
    node = root
    while not root.exhausted:
        live = [child for child in node.children if not child.exhausted]
        good = sum(child.reward >= node.reward for child in node.children)
        may_widen = good < max(1, node.visits ** config.widening) or not live
        if may_widen and any(path not in known for path in node.edits):
            return node
        if not live:  # used up: begin again without it
            node.exhausted, node = True, root
        elif rng.random() < config.random_child:
            node = rng.choice(live)
        else:
            node = max(live, key=lambda child: score(child, config))
    return None


def grow(parent, known, config, rng):
    """The decisions of a new child, not asked yet: one edit further than the parent, or several."""
    path = rng.choice([edit for edit in parent.edits if edit not in known])
    stacking = config.stacking if any(known.values()) else config.stacking_blind
    while rng.random() < stacking:
        further = [edit for edit in edits(path) if edit not in known]
        if not further:
            break
        path = rng.choice(further)
    return path


def backpropagate(node):
    """Adds a new node's visit and reward to itself and everything above it."""
    reward = node.reward
    while node is not None:
        node.visits += 1
        node.total_reward += reward
        node = node.parent


def search(num_layers, config, rng, select=select):
    """Generator of one question's search: yields decisions, is sent their reward in [0, 1] (above
    0: right), returns a SearchResult. rng: a random.Random. select: which node grows."""
    default = (EXECUTE,) * num_layers
    rewards = {default: (yield default)}
    root = Node(default, rewards[default], None)
    backpropagate(root)
    for _ in range(config.simulations):
        parent = select(root, rewards, config, rng)
        if parent is None:
            break
        path = grow(parent, rewards, config, rng)
        rewards[path] = yield path
        child = Node(path, rewards[path], parent)
        parent.children.append(child)
        backpropagate(child)
        if config.stop_when_repaired and not rewards[default] and rewards[path]:
            break
    right = [path for path, reward in rewards.items() if reward > 0]
    best = min(right, key=sum) if rewards[default] else next(iter(right), None)
    return SearchResult(best, rewards[default], rewards)
