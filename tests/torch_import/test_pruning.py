"""Object graphs that contain themselves, are nested deep, or share parts."""

import pickle
import random
import time

import numpy as np
import pytest

from replk_jax.torch_import.placeholders import Placeholder
from replk_jax.torch_import.pruning import MOST_LEVELS, prune
from replk_jax.torch_import.reader import read
from tests.torch_import.archives import tensor, write_archive

MANY = 10**6


def parts_of(value):
    if isinstance(value, Placeholder):
        return [value.args, value.state, value.items, value.entries]
    if isinstance(value, dict):
        return [*value.keys(), *value.values()]
    return list(value) if isinstance(value, list | tuple | set | frozenset) else []


def extent(value, around=()):
    """The numbers of values and of levels; fails if the value contains itself."""
    parts = parts_of(value)
    assert not parts or id(value) not in around
    inner = [extent(part, (*around, id(value))) for part in parts]
    levels = max((levels for _, levels in inner), default=0) + bool(parts)
    return 1 + sum(values for values, _ in inner), levels


def omissions(value):
    """The reasons why anything in a tree was left out."""
    own = [value.omitted] if isinstance(value, Placeholder) and value.omitted else []
    return own + [reason for part in parts_of(value) for reason in omissions(part)]


# Pickles of what no recursive function could walk, and the reason that the result gives.
ENDLESS = {
    "list in itself": (b"]q\x00h\x00a.", "contains itself"),
    "dict in itself": (b"}q\x00Nh\x00s.", "contains itself"),
    "tuple in itself": (b"]q\x00h\x00\x85a.", "contains itself"),
    "object in itself": (b"]ca\nb\n)\x81q\x00}Nh\x00sba.", "contains itself"),
    "object in its key": (b"]ca\nb\n)\x81q\x00}h\x00Nsba.", "contains itself"),
    "object in its arguments": (b"]q\x00ca\nb\n(h\x00tRa.", "contains itself"),
    "lists in lists": (b"]" * 10_000 + b"a" * 9_999 + b".", "over 100 levels"),
    "tuples in tuples": (b")" + b"\x85" * 100_000 + b".", "over 100 levels"),
    "tuples in tuples as a key": (b"})" + b"\x85" * 100_000 + b"Ns.", "over 100 levels"),
    "objects in objects": (
        b"]ca\nb\nq\0" + b"h\0" * 9_999 + b")" + b"\x85R" * 10_000 + b"a.", "over 100 levels",
    ),
    "deep by way of what is shared": (
        b"](" + b"]" * 60 + b"a" * 59 + b"q\x00" + b"0" + b"]" * 60 + b"h\x00" + b"a" * 60 + b"e.",
        "over 100 levels",
    ),
    "doubled fifty times": (
        b"]q\0" + b"".join(b"](h%ch%ceq%c" % (i, i, i + 1) for i in range(50)) + b"h\x32.",
        "unfolds to more",
    ),
    "doubled keys": (
        b")q\0" + b"".join(b"h%ch%c\x86q%c" % (i, i, i + 1) for i in range(50)) + b"}h\x32Ns.",
        "unfolds to more",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", ENDLESS)
@pytest.mark.parametrize("beside", [False, True], ids=["at the top", "beside weights"])
def test_pickles_without_end(name, beside, tmp_path):
    pickle_, reason = ENDLESS[name]
    if beside:
        kept = b"(" + pickle_[:-1] + b"r\xff\0\0\x001"  # in the memo, and the stack as before
        weights = b"(Vw\n" + tensor() + b"d"
        pickle_ = kept + b"}Vother\nj\xff\0\0\0sVmodel\n" + weights + b"s."
    write_archive(tmp_path / "f", pickle_, {"0": np.arange(4, dtype=np.float32).tobytes()})
    begin = time.process_time()
    contents = read(tmp_path / "f")
    assert any(reason in omission for omission in omissions(contents))
    values, levels = extent(contents)
    assert levels <= MOST_LEVELS
    assert values < 3 * MANY
    assert repr(contents)
    if beside:
        np.testing.assert_array_equal(contents["model"]["w"].read(), np.arange(4))
    assert time.process_time() - begin < 20


class Node:
    """A node of a configuration, which knows its parent."""

    def __init__(self, parent=None):
        self.parent, self.children = parent, []
        if parent is not None:
            parent.children.append(self)


@pytest.mark.parametrize("protocol", [0, 2, 5])
def test_parent_pointers(protocol, tmp_path):
    root = Node()
    Node(Node(root))
    Node(root)
    contents = read(write_archive(tmp_path / "f", pickle.dumps({"config": root}, protocol)))
    children = contents["config"].state["children"]
    assert len(children) == 2
    assert children[0].state["parent"].omitted == "it contains itself"
    assert children[0].state["parent"].path == f"{__name__}.Node"
    (grandchild,) = children[0].state["children"]
    assert grandchild.state["children"] == []
    assert "left out: it contains itself" in repr(grandchild)


def test_a_tree_is_left_as_it_is():
    shared = [1, (2, {3})]
    tree = {"a": shared, "b": (shared, shared), "c": Placeholder("m", "n", (shared,), shared)}
    pruned = prune(tree, MANY)
    assert pruned is tree
    assert pruned["a"] is pruned["b"][0] is pruned["b"][1] is pruned["c"].args[0] is shared
    assert shared == [1, (2, {3})]
    assert not omissions(tree)


def test_nesting_up_to_the_limit():
    tree = []
    for _ in range(MOST_LEVELS - 3):
        tree = [tree]
    assert not omissions(prune([tree], MANY))
    assert omissions(prune([[tree]], MANY)) == ["it is nested in over 100 levels"]


def test_values_up_to_the_limit():
    shared = list(range(10))
    assert not omissions(prune([shared] * 3, 34))
    pruned = prune([shared] * 3, 33)
    assert (pruned.path, pruned.args) == ("builtins.list", ())
    assert pruned.omitted == "it unfolds to more values than the file has"


def test_only_the_reference_that_closes_a_circle_is_left_out():
    inner = Placeholder("m", "Inner", ())
    outer = Placeholder("m", "Outer", (), {"inner": inner, "kept": [1]})
    inner.state = (outer, 7)
    inner.items.append(outer)
    inner.entries[outer] = outer
    pruned = prune({"outer": outer, "again": outer}, MANY)
    assert pruned["outer"] is pruned["again"] is outer
    assert outer.state == {"inner": inner, "kept": [1]}
    assert inner.state[1] == 7
    ((key, value),) = inner.entries.items()
    for omitted in (inner.state[0], *inner.items, key, value):
        assert (omitted.path, omitted.omitted) == ("m.Outer", "it contains itself")


@pytest.mark.parametrize("seed", range(5))
def test_random_graphs(seed):
    """Whatever refers to whatever, the result is a tree, and values without parts stay."""
    rng = random.Random(seed)
    nodes = [rng.choice([list, dict, lambda: Placeholder("m", "n", ())])() for _ in range(60)]
    for number, node in enumerate(nodes):
        targets = [number, *rng.sample(nodes, rng.randrange(3)), (rng.choice(nodes), number)]
        if isinstance(node, list):
            node += targets
        elif isinstance(node, dict):
            node.update(enumerate(targets))
        else:
            node.state = targets
    top = prune([nodes[0], nodes], MANY)
    values, levels = extent(top) if not isinstance(top, Placeholder) else (1, 1)
    assert levels <= MOST_LEVELS
    assert values <= MANY
    for number, node in enumerate(nodes):
        inner = node.state if isinstance(node, Placeholder) else node
        assert isinstance(inner, Placeholder) or inner[0] == number


def test_omegaconf(tmp_path):
    torch = pytest.importorskip("torch")
    omegaconf = pytest.importorskip("omegaconf")
    config = omegaconf.OmegaConf.create({"model": {"lr": 0.1, "layers": [1, {"b": "${model.lr}"}]}})
    contents = {"state_dict": {"w": torch.arange(3.0)}, "all": config, "part": config.model.layers}
    torch.save(contents, tmp_path / "f")
    contents = read(tmp_path / "f")
    np.testing.assert_array_equal(contents["state_dict"]["w"].read(), [0, 1, 2])
    lr = contents["all"].state["_content"]["model"].state["_content"]["lr"]
    assert lr.state["_val"] == 0.1
    extent(contents)
