"""Figures: drawn from synthetic rows, with the points where they belong."""
import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from adwm import metrics, plots, style
from adwm import rows as tables
from adwm.core import UserError, key_rng


def rows(settings=("ours", "paper"), agents=6, epsilons=(0., .25, 1.), interval=True):
    "Rows of a made-up cell, with floors."
    rng, lines = key_rng(0, "rows"), []
    for a in range(agents):
        for e in epsilons:
            V = (.1 + .1 * a) * (1 - e) + .05 * e
            for setting in settings:
                for seed in (0, 1):
                    v = V + .02 * rng.normal() if setting == "ours" else .4 + .2 * V
                    bounds = (v - .05, v + .05) if interval else (np.nan, np.nan)
                    lines.append(("made", setting, "ADWM", "shared" if e == 1 else f"agent{a}", e, seed, "reward", v, *bounds, V, .01, 150, 600, "estimated"))
    table = pd.DataFrame(lines, columns=tables.ROW)
    return pd.concat([table, tables.know_nothing_rows(table, .3)], ignore_index=True)


def test_scatter_has_one_panel_per_setting_and_every_policy():
    fig = plots.scatter(rows(), band=.02)
    assert [ax.get_title(loc="left") for ax in fig.axes] == ["ADWM, ours", "ADWM, paper"]
    points = [line for line in fig.axes[0].lines if line.get_marker() == "o" and len(line.get_xdata()) == 1]
    assert len(points) == 13, "6 agents x 2 epsilons and the shared policy once"
    truth = sorted(round(float(p.get_xdata()[0]), 6) for p in points)
    assert truth == sorted(round(v, 6) for v in tables.policy_lines(rows()).query("setting == 'ours'")["truth"])


@pytest.mark.parametrize("settings", [("ours",), ("ours", "paper", "third")])
def test_scatter_with_other_numbers_of_settings_and_no_intervals(settings):
    assert len(plots.scatter(rows(settings, interval=False)).axes) == len(settings)


def test_epsilon_curves_end_in_the_shared_policy():
    fig = plots.epsilon_curves(rows(agents=7), columns=3)
    shown = [ax for ax in fig.axes if ax.get_visible()]
    assert len(shown) == 7
    ours = shown[0].lines[0]
    assert list(ours.get_xdata()) == [0, .25, 1]


def partial(table, agents=("agent0",)):
    "Rows of a rival that was asked about some agents only, and is nearly right there."
    some = table[(table["setting"] == "ours") & table["policy"].isin(agents)]
    return pd.concat([table, some.assign(setting="baseline", estimator="easy", value=some["truth"] + .001)], ignore_index=True)


def test_estimate_figure_is_saved(tmp_path):
    fig = plots.estimate_figure(rows(agents=8), noise_floor=metrics.Interval(.02, .01, .03), title="made up")
    path = style.save_figure(fig, tmp_path / "new" / "slide.png")
    assert path.stat().st_size > 30_000
    assert style.save_figure(fig, tmp_path / "slide.svg").read_text().lstrip().startswith("<?xml")


def test_one_agent_one_epsilon():
    assert plots.estimate_figure(rows(("ours",), agents=1, epsilons=(0.,))).subfigs
    assert len(plots.epsilon_curves(rows(("ours",), agents=1, epsilons=(0.,))).axes) == 1


def test_errors_are_compared_on_the_same_policies():
    found = plots.common_errors(partial(rows()))
    easy, ours = found.errors.loc[("baseline", "easy")], found.errors.loc[("ours", "ADWM")]
    assert not easy["common"] and ours["common"] and easy["policies"] == 2 and len(found.policies) == ours["policies"] == 13
    line = tables.policy_lines(rows()).query("setting == 'ours' and estimator == 'ADWM'")
    error = (line["value"] - line["truth"]).abs()
    assert np.isclose(ours["MAE"], error.mean()) and np.isclose(easy["reference"], error[line["policy"] == "agent0"].mean())
    assert len(plots.common_errors(partial(rows()), most=.1).policies) == 2, "or everybody on the few"


def test_a_few_policies_left_out_by_one_are_left_out_for_all():
    table = rows(agents=8)
    gap = (table["setting"] == "paper") & (table["policy"] == "agent7")
    found = plots.common_errors(table.assign(value=table["value"].where(~gap)))
    assert len(found.policies) == 15 and (found.errors["policies"] == 15).all() and found.errors["common"].all()
    assert ("agent7", 0.) not in found.policies


def test_error_ladder_is_sorted_and_names_what_knows_nothing():
    fig = plots.error_ladder(plots.common_errors(partial(rows())), metrics.Interval(.02, .01, .03))
    names = [t.get_text() for t in fig.axes[0].get_yticklabels()]
    assert names[0] == "ADWM, ours" and {"pool mean", "eps only"} <= set(names) and "-eps" not in names
    assert names[-1] == "easy (2)", "who judged fewer is not among the others, however small the error"
    assert fig.axes[0].get_title(loc="left") == "error on the same 13 policies"


def test_loss_curves_one_row_per_training_one_panel_per_phase():
    lines = [dict(phase=p, update=u, loss=l, value=1 / (1 + u) - .3) for p in ("joint", "cached") for l in "ab" for u in range(5)]
    fig = style.loss_curves({"ours": lines, "paper": pd.DataFrame(lines).assign(value=1.)})
    assert [ax.get_title(loc="left") for ax in fig.axes] == ["ours, joint phase", "ours, cached phase", "paper, joint phase", "paper, cached phase"]
    assert [ax.get_yscale() for ax in fig.axes] == ["symlog", "symlog", "log", "log"]
    with pytest.raises(UserError, match="value"):
        style.loss_curves({"a": [{"phase": "joint", "update": 0, "loss": "a"}]})


def test_calibration_bins_hold_the_data():
    truth = key_rng(0, "c").random(400)
    fig = plots.calibration({"exact": truth}, truth, np.repeat(np.arange(100), 4))
    x, y = fig.axes[0].lines[0].get_data()
    assert np.allclose(x, y) and len(x) == 8


def test_weight_concentration_survives_huge_logs():
    logw = {"T = 1": np.zeros(100), "T = 12": np.linspace(-500, 500, 100)}
    fig = plots.weight_concentration(logw)
    labels = [t.get_text() for t in fig.axes[0].get_legend().get_texts()]
    assert labels[:2] == ["T = 1: ESS 100 of 100", "T = 12: ESS 1 of 100"]


def test_stage_bars_from_dict_and_frame():
    seconds = {"model": 100., "rollouts": 20.}
    for given in (seconds, pd.DataFrame({"stage": seconds.keys(), "seconds": seconds.values()})):
        assert plots.stage_bars(given).axes[0].get_title(loc="left") == "2.0 minutes in all"


def test_no_rows_is_a_sentence_and_style_is_left_alone():
    before = dict(plt.rcParams)
    with pytest.raises(UserError, match="FQE"):
        plots.scatter(rows(), estimator="FQE")
    plots.stage_bars({"a": 1.})
    assert dict(plt.rcParams) == before and not plt.get_fignums(), "no style leaks, no figure stays open"


def test_colours_keep_their_meaning():
    colors = style.color_of(["ours", "paper", "a", "b"])
    assert colors["ours"] == style.COLORS["ours"] and len(set(colors.values())) == 4


def test_pictures_have_a_palette_and_keep_their_colours(tmp_path):
    from PIL import Image
    path = style.save_figure(plots.epsilon_curves(rows()), tmp_path / "curves.png")
    picture = Image.open(path)
    assert picture.mode == "P" and len(picture.getcolors()) <= 96
    shown = np.array([c for _, c in picture.convert("RGB").getcolors()])
    wanted = [tuple(int(style.COLORS[k][i:i + 2], 16) for i in (1, 3, 5)) for k in ("ours", "paper", "truth")] + [(255, 255, 255)]
    for color in wanted: assert np.abs(shown - color).max(1).min() <= 16, color
    assert path.read_bytes() == style.save_figure(plots.epsilon_curves(rows()), tmp_path / "again.png").read_bytes()


def test_names_without_a_fixed_colour_resemble_no_fixed_one():
    rgb = lambda c: np.array([int(c[i:i + 2], 16) for i in (1, 3, 5)])
    for spare in style.SPARE: assert min(np.abs(rgb(spare) - rgb(c)).sum() for c in style.COLORS.values()) > 60
