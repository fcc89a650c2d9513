"""OBP 0.4.1's numbers at T = 1 on the data of scope_rl_reference.py: the second independent reference of tests/test_scope_rl.py.

    pip install --no-deps --target SITE obp==0.4.1
    PYTHONPATH=SITE python tests/benchmarks/obp_reference.py

prints them. Only its estimators are loaded; scikit-learn, which they do not use, is replaced by an empty stand-in where it is missing.
"""
import importlib
import importlib.util
from functools import lru_cache
from pathlib import Path

import numpy as np
from scope_rl_reference import data, stand_ins

NAMES = dict(DM="DirectMethod", IS="InverseProbabilityWeighting", DR="DoublyRobust", WIS="SelfNormalizedInverseProbabilityWeighting", WDR="SelfNormalizedDoublyRobust")


@lru_cache
def load() -> dict | None:
    "OBP's estimator classes by our names, or None where it is not installed."
    spec = importlib.util.find_spec("obp")
    if spec is None: return None
    folder = Path(spec.origin).parent
    missing = {"sklearn": {}, "sklearn.utils": dict(check_random_state=np.random.RandomState)}
    with stand_ins(missing, {"obp": folder, "obp.ope": folder / "ope"}): module = importlib.import_module("obp.ope.estimators")
    return {k: getattr(module, v) for k, v in NAMES.items()}


def numbers(classes: dict) -> dict:
    "Policy values by every class, one turn per trajectory."
    d = data(T=1)
    dist, q = (d[k][:, :, None] for k in ("evaluation_policy_action_dist", "state_action_value_prediction"))
    given = dict(reward=d["reward"], action=d["action"], pscore=d["pscore"], action_dist=dist, position=np.zeros(len(d["action"]), int), estimated_rewards_by_reg_model=q)
    return {k: float(c().estimate_policy_value(**given)) for k, c in classes.items()}


if __name__ == "__main__":
    classes = load()
    print("OBP is not installed" if classes is None else numbers(classes))
