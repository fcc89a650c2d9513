"""Our numbers against SCOPE-RL 0.2.1 and, at T = 1, OBP 0.4.1: recomputed where they are installed, else as recorded by tests/benchmarks/{scope_rl,obp}_reference.py."""
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent / "benchmarks"))
import obp_reference
from scope_rl_reference import data, load, numbers

from adwm.fitted import dr_terms, wdr_terms
from adwm.weights import Logs, is_terms, pdis_terms, stepwis_terms, wis_terms

# pip install --no-deps --target SITE scope-rl==0.2.1 && PYTHONPATH=SITE python tests/benchmarks/scope_rl_reference.py
RECORDED = {6: {"DM": 1.542766155358751, "IS": 1.4268662211785859, "PDIS": 2.3790172696514476, "DR": 3.7218498587203386, "WIS": 2.8372673205613608,
                "SNPDIS": 3.0059839491650444, "SNDR": 3.5765929357814605},
            1: {"DM": 1.5436771485691758, "IS": 0.48517326183887766, "PDIS": 0.48517326183887766, "DR": 0.6938663661045561, "WIS": 0.5706239411812797,
                "SNPDIS": 0.5706239411812797, "SNDR": 0.5441942502116247}}


def ours(T):
    d = data(T=T)
    shape, rows = (-1, T), np.arange(len(d["action"]))
    chosen = d["evaluation_policy_action_dist"][rows, d["action"]]
    logs = Logs(np.log(chosen / d["pscore"]).reshape(shape).cumsum(1), d["reward"].reshape(shape), np.ones((len(rows) // T, T), bool))
    q = d["state_action_value_prediction"][rows, d["action"]].reshape(shape)
    v = (d["state_action_value_prediction"] * d["evaluation_policy_action_dist"]).sum(1).reshape(shape)
    g = d["gamma"]
    terms = dict(DM=(v[:, 0], 0.0), IS=is_terms(logs, g), PDIS=pdis_terms(logs, g), DR=dr_terms(logs, q, v, g), WIS=wis_terms(logs, g),
                 SNPDIS=stepwis_terms(logs, g), SNDR=wdr_terms(logs, q, v, g))
    return {k: float(np.exp(s) * x.mean()) for k, (x, s) in terms.items()}


@pytest.mark.parametrize("T", [6, 1])
def test_numbers_agree_with_scope_rl(T):
    theirs = numbers(load(), T=T) if load() else RECORDED[T]
    mine = ours(T)
    assert theirs == pytest.approx(RECORDED[T], abs=1e-12), "the recorded numbers are those of the installed version"
    for name in ("DM", "IS", "PDIS", "DR"): assert mine[name] == pytest.approx(theirs[name], abs=1e-10)
    for name in ("WIS", "SNPDIS", "SNDR"): assert mine[name] == pytest.approx(theirs[name], abs=2e-9), "SCOPE-RL adds 1e-10 to each denominator"


# pip install --no-deps --target SITE obp==0.4.1 && PYTHONPATH=SITE python tests/benchmarks/obp_reference.py
OBP = {"DM": 1.5436771485691758, "IS": 0.48517326183887766, "DR": 0.6938663661045561, "WIS": 0.5706239412483921, "WDR": 0.5441942500940733}


def test_numbers_agree_with_obp_at_one_turn():
    classes = obp_reference.load()
    theirs, mine = obp_reference.numbers(classes) if classes else OBP, ours(1)
    assert theirs == pytest.approx(OBP, abs=1e-12), "the recorded numbers are those of the installed version"
    for name, own in dict(DM="DM", IS="IS", DR="DR", WIS="WIS", WDR="SNDR").items(): assert mine[own] == pytest.approx(theirs[name], abs=1e-10)
