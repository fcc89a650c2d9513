"""SCOPE-RL 0.2.1's numbers on a fixed data set: the independent reference of tests/test_scope_rl.py.

    pip install --no-deps --target SITE scope-rl==0.2.1
    PYTHONPATH=SITE python tests/benchmarks/scope_rl_reference.py

prints them. Only its seven discrete estimators are loaded; what the package imports on the way and they do not use (gym, d3rlpy,
and scikit-learn where it is missing) is replaced by empty stand-ins.
"""
import importlib
import importlib.util
import sys
import types
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

import numpy as np

NAMES = dict(DM="DirectMethod", IS="TrajectoryWiseImportanceSampling", PDIS="PerDecisionImportanceSampling", DR="DoublyRobust",
             WIS="SelfNormalizedTIS", SNPDIS="SelfNormalizedPDIS", SNDR="SelfNormalizedDR")


@contextmanager
def stand_ins(missing: dict, packages: dict):
    "While something is imported: modules with a few members for what is not installed, and packages of which only submodules are wanted."
    made = {name: members for name, members in missing.items() if importlib.util.find_spec(name.split(".")[0]) is None}
    made |= {name: dict(__path__=[str(folder)]) for name, folder in packages.items()}
    for name, members in made.items():
        sys.modules[name] = types.ModuleType(name)
        vars(sys.modules[name]).update(members)
    try: yield
    finally:
        for name in made: del sys.modules[name]   # left behind, they would pass for the real ones


@lru_cache
def load() -> dict | None:
    "SCOPE-RL's estimator classes by our names, or None where it is not installed."
    spec = importlib.util.find_spec("scope_rl")
    if spec is None: return None
    folder = Path(spec.origin).parent / "ope"
    missing = {"gym": dict(Env=object), "d3rlpy": {}, "d3rlpy.preprocessing": dict(ActionScaler=object), "sklearn": {},
               "sklearn.utils": dict(check_scalar=lambda x, **k: x, check_random_state=np.random.RandomState)}
    with stand_ins(missing, {"scope_rl.ope": folder, "scope_rl.ope.discrete": folder / "discrete"}):
        module = importlib.import_module("scope_rl.ope.discrete.basic_estimators")
    return {k: getattr(module, v) for k, v in NAMES.items()}


def data(n: int = 50, T: int = 6, actions: int = 3, spread: float = 1.0) -> dict:
    "A fixed data set in SCOPE-RL's shapes: flat arrays of n * T rows."
    rng = np.random.Generator(np.random.Philox(key=20))
    policy = lambda: (lambda x: x / x.sum(-1, keepdims=True))(np.exp(spread * rng.normal(size=(n * T, actions))))
    behavior, target = policy(), policy()
    action = (rng.random((n * T, 1)) > behavior.cumsum(1)).sum(1)
    return dict(step_per_trajectory=T, action=action, reward=rng.uniform(0, 1, n * T), pscore=behavior[np.arange(n * T), action],
                evaluation_policy_action_dist=target, state_action_value_prediction=rng.uniform(0, 3, (n * T, actions)), gamma=0.95)


def numbers(classes: dict, **sizes) -> dict:
    "Policy values by every class."
    d = data(**sizes)
    return {k: float(c()._estimate_trajectory_value(**d).mean()) for k, c in classes.items()}


if __name__ == "__main__":
    classes = load()
    print("SCOPE-RL is not installed" if classes is None else {T: numbers(classes, T=T) for T in (6, 1)})
