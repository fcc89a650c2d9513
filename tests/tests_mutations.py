"Valid JSON, spoiled in one or two places."
import copy

from hypothesis import settings, strategies as st

ODD = (None, True, 0, -1, 3, 1.5, 1e308, 10**40, float("nan"), float("inf"), "", " ", "x", "$", "\ud800", "\n", "nan", [], {}, [[]], [None], [{}], ["x"], {"x": 1}, {"value": "x"}, [["x", 0]])
quick = settings(derandomize=True, deadline=None, max_examples=200, database=None)


def places(value, path=()):
    "Paths to everything inside a JSON value."
    for key, inner in (value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()):
        yield (*path, key)
        yield from places(inner, (*path, key))


@st.composite
def spoiled(draw, value):
    "The value with things replaced by odd ones, left out, repeated, or cut to a part."
    value = copy.deepcopy(value)
    for _ in range(draw(st.integers(1, 2))):
        *path, key = draw(st.sampled_from(list(places(value)) or [(0,)]))
        parent = value
        for p in path: parent = parent[p]
        how = draw(st.sampled_from(("replace", "replace", "drop", "repeat", "cut")))
        if not parent: continue
        if how == "replace": parent[key] = copy.deepcopy(draw(st.sampled_from(ODD)))
        if how == "drop": del parent[key]
        if how == "repeat" and isinstance(parent, list): parent.append(copy.deepcopy(parent[key]))
        if how == "cut" and isinstance(parent[key], str): parent[key] = parent[key][:draw(st.integers(0, len(parent[key])))]
    return value
