"""Our ablation: what is the guard worth on tasks that the routers never saw?"""
from drllm import RouterRoute, Routers

QUESTION = "Do the routers lose accuracy on tasks they never saw when the guard is taken off?"
QUESTIONS = ["ood.jsonl"]
BASELINE, CHANGED = "small routers", "the same routers without the guard"


def routes(model):
    """(baseline, changed): None would be the plain model."""
    routers = Routers.load("course/routers.safetensors", model)
    return routers.route, RouterRoute(routers, guard=False)
