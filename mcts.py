"""Which layers to skip and repeat for one question: a length-aware tree search over paths.

Paper §3.2 and Algorithm 1. A path is written as *decisions* (paths.py): SKIP, EXECUTE or REPEAT for
each layer. An *edit* decides to skip or repeat one more layer. The search starts at the default
path (every layer once), grows a tree of edited paths, and asks for the reward of one new path per
simulation (the paper's word for an iteration). It never sees a model. It is a generator: a caller
drives it alone, in lockstep with a thousand others, or in a test with a table of rewards.

Departures from the authors' code: the tree branches (theirs always extends its newest leaf) and
a child may add several edits at once; the logarithm is of the parent's visits; no path is tried
twice, and no illegal path is tried.

    search(12, SearchConfig(), random.Random(0))    # yields decisions, is sent a reward in [0, 1]
"""
import math
from dataclasses import dataclass

# not all are used below: who uses the search may import them from this file
from paths import (EXECUTE, REPEAT, SKIP, blocks, decisions_of, default_path,  # noqa: F401
                   edits, is_legal, path_of)


# ---- the tree ----

@dataclass(frozen=True)
class SearchConfig:
    """Algorithm 1's constants, and three of ours (the last ones). Our commands set
    stop_when_repaired to False, so that there are several correct paths to choose a label from."""
    simulations: int = 50            # new paths tried after the default path
    exploration: float = 1.8         # c
    length_penalty: float = 3.0      # lambda
    random_child: float = 0.1        # probability of descending to a random child
    stop_when_repaired: bool = True  # if the default is incorrect, stop at the first correct path
    widening: float = 0.5            # a node with v visits may have v ** widening good children
    extra_edit_prob: float = 0.3            # probability that a child adds another edit, repeatedly
    extra_edit_prob_before_success: float = 0.7      # the same until some path has been correct


@dataclass(frozen=True)
class SearchResult:
    """paper_label: None if no path was correct. Otherwise there are two cases. If the default path
    is correct, it is the shortest correct path, of equals the first one tried. If the default path
    is incorrect, it is the first correct path tried.
    rewards: {decisions: reward} of every path tried, in this order."""
    paper_label: tuple | None
    default_reward: float
    rewards: dict

    @property
    def best(self):
        """paper_label: the search's answer by the name that any search gives it."""
        return self.paper_label


class Node:
    """A path in the tree, its reward, and the visits and rewards of itself and all nodes below."""

    def __init__(self, decisions, reward, parent):
        self.decisions, self.reward = decisions, reward
        self.parent, self.children = parent, []
        self.visits, self.total_reward = 0, 0.0
        self.edits = edits(decisions)  # paths with one more edit
        self.exhausted = False  # True if all paths at or below this node have been tried


# ---- the four steps of a simulation: select, expand, evaluate (by the caller), backpropagate ----

def ucb_score(child, config):
    """UCB with a cost for length (paper Eq. 2): Q/v + c sqrt(ln V / v) - lambda |path| / L, where Q
    and v are the child's total reward and visits, and V its parent's visits.

    Q=1, v=2, V=4, |path|=11, L=12 give 0.5 + 1.8 * 0.8326 - 2.75 = -0.7514. With lambda 3 and 12
    layers every block costs 0.25, and the default path 3, so most scores are negative."""
    mean = child.total_reward / child.visits
    bonus = math.sqrt(math.log(child.parent.visits) / child.visits)
    relative_length = blocks(child.decisions) / len(child.decisions)
    return mean + config.exploration * bonus - config.length_penalty * relative_length


def select_node_to_expand(root, rewards, config, rng):
    """The node that gets a new child, or None if all legal paths have been tried. rewards: of the
    paths tried so far, {decisions: reward}.

    The walk starts at the root and ends at the first node that has an untried edit and may get
    another child. A node with v visits may have v ** widening children whose reward is at least its
    own (progressive widening). If it has as many, the walk continues at one of its children."""
    node = root
    while not root.exhausted:
        open_children = [child for child in node.children if not child.exhausted]
        # a child with less reward than its parent takes no room from others: it does not count
        good_children = sum(child.reward >= node.reward for child in node.children)
        limit = node.visits ** config.widening
        may_widen = good_children < limit or not open_children
        if may_widen and any(path not in rewards for path in node.edits):
            return node
        if not open_children:  # nothing is left at or below this node: start again without it
            node.exhausted = True
            node = root
        elif rng.random() < config.random_child:
            node = rng.choice(open_children)
        else:
            node = max(open_children, key=lambda child: ucb_score(child, config))
    return None


def propose_child_path(parent, rewards, config, rng):
    """Expansion: the decisions of a new child. They add one edit to the parent's, or several, and
    have not been tried before."""
    path = rng.choice([edited for edited in parent.edits if edited not in rewards])
    any_correct = any(rewards.values())
    another_edit = config.extra_edit_prob if any_correct else config.extra_edit_prob_before_success
    while rng.random() < another_edit:
        further_paths = [further for further in edits(path) if further not in rewards]
        if not further_paths:
            break
        path = rng.choice(further_paths)
    return path


def backpropagate(node):
    """Adds a new node's visit and reward to itself and to every node above it."""
    reward = node.reward
    while node is not None:
        node.visits += 1
        node.total_reward += reward
        node = node.parent


# ---- the search ----

def search(num_layers, config, rng, select=select_node_to_expand):
    """Generator of one question's search: yields decisions, is sent their reward in [0, 1] (above
    0: correct), returns a SearchResult. rng: a random.Random. select: chooses the node that gets
    a new child."""
    default = default_path(num_layers)
    default_reward = yield default
    rewards = {default: default_reward}
    root = Node(default, default_reward, None)
    backpropagate(root)
    for _ in range(config.simulations):
        parent = select(root, rewards, config, rng)
        if parent is None:
            break
        path = propose_child_path(parent, rewards, config, rng)
        rewards[path] = yield path
        child = Node(path, rewards[path], parent)
        parent.children.append(child)
        backpropagate(child)
        # a correct default leaves layers to save, so only an incorrect one ends the search early
        if config.stop_when_repaired and not rewards[default] and rewards[path]:
            break
    correct = [path for path, reward in rewards.items() if reward > 0]  # in the order tried
    if default_reward:
        paper_label = min(correct, key=blocks)
    else:
        paper_label = correct[0] if correct else None
    return SearchResult(paper_label, default_reward, rewards)
