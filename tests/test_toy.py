"The toy shop: rewards, pages and templates, tasks that share no wish, customers, refusals."
import pytest

from adwm.core import UserError
from adwm.envs import State
from adwm.episodes import TERMINAL, Turn
from adwm.policies import ReferencePolicy, ScriptedPolicy
from adwm.rollouts import make_rows, rollout
from adwm.toy import FRONT, Kiosk, good_choices, good_page, kiosk_expert, kiosk_hasty, list_choices, list_page, page_lines, read_wish, worth

KIOSK = Kiosk()


def test_goods_and_tasks_are_keyed_and_disjoint():
    assert Kiosk().goods == KIOSK.goods != Kiosk(1).goods and len({g.line for g in KIOSK.goods}) == 60
    first, later = KIOSK.tasks(100), KIOSK.tasks(80, start=100)
    assert len({t.text for t in first + later}) == 180 and not {t.id for t in first} & {t.id for t in later}
    for task in first:
        wish = read_wish(task.text)
        assert wish.text == task.text and max(worth(wish, g, wish.color) for g in KIOSK.goods if wish.color in g.colors) == 1


def test_the_expert_is_perfect_and_comes_back_from_anywhere():
    episodes = rollout(KIOSK, ScriptedPolicy("expert", kiosk_expert), make_rows(KIOSK.tasks(180)), 0, 4)
    assert all(e.ret == 1 and e.terminated for e in episodes)
    lost = rollout(KIOSK, ReferencePolicy(KIOSK.domain), make_rows(KIOSK.tasks(60)), 0, 5)
    states = [State(e.task, e.last_obs, o.choices, e.turns) for e in lost if not e.terminated
              for o in [next((t for t in e.turns if t.obs == e.last_obs), None)] if o]
    for state in states:
        for _ in range(6):
            outcome = KIOSK.step([state], [kiosk_expert(state)], [()])[0]
            state = outcome.state
            if outcome.terminated: break
        assert outcome.terminated and outcome.reward == 1


def test_a_page_hides_the_color_and_the_reward_knows_it():
    good = KIOSK.goods[0]
    task = next(t for t in KIOSK.tasks(180) if read_wish(t.text)[:3] == good[:3])
    wish = read_wish(task.text)
    state = State(task, good_page(good), good_choices(good), (Turn(list_page([good.line]), "open[1]", 0., list_choices([good.line])),))
    bare = KIOSK.step([state], ["buy[]"], [()])[0]
    chosen = KIOSK.step([state], [f"choose[{wish.color}]"], [()])[0].state
    assert chosen.obs == state.obs and KIOSK.domain.hidden(chosen.turns) == wish.color
    assert (bare.reward, KIOSK.step([chosen], ["buy[]"], [()])[0].reward, bare.state.obs) == (.75, 1., TERMINAL)
    back = KIOSK.step([chosen], ["back[]"], [()])[0].state
    assert back.obs == list_page([good.line])
    assert KIOSK.domain.hidden(KIOSK.step([back], ["open[1]"], [()])[0].state.turns) == "", "opened anew, nothing is chosen"


def test_what_a_page_does_not_offer_changes_nothing():
    task = KIOSK.tasks(1)[0]
    state = State(task, FRONT, ("search[]",))
    for action in ("open[1]", "buy[]", "fly", "back[]"):
        out = KIOSK.step([state], [action], [()])[0]
        assert out.state.obs == FRONT and not out.terminated and out.reward == 0
    assert page_lines(KIOSK.step([state], ["search[unheard-of]"], [()])[0].state.obs) == ()


def test_lists_are_taken_apart_and_composed_and_pages_adapted():
    d, found = KIOSK.domain, [g.line for g in KIOSK.search("wool hat")]
    page, choices = d.compose(found + ["more"] * 5, 1, "")
    assert [x for x, _ in d.lines(page)] == found and choices == list_choices(found) and d.listed("search[wool hat]", FRONT) == ("wool hat", 1)
    assert d.listed("open[1]", page) is None and d.template("open[2]", page) == ("open", found[1]) and d.unresolve("open", found[1], page, choices) == "open[2]"
    assert d.adapt(good_page(KIOSK.goods[0]), found[0]).startswith(f"good | {found[0]} | colors: ") and d.adapt(page, found[0]) == page


def test_a_hasty_customer_earns_less_and_refusals_name_the_remedy():
    hasty = rollout(KIOSK, ScriptedPolicy("hasty", kiosk_hasty), make_rows(KIOSK.tasks(60)), 0, 12)
    assert all(e.terminated for e in hasty) and .6 < sum(e.ret for e in hasty) / 60 < .9
    with pytest.raises(UserError, match="more goods"): KIOSK.tasks(10, start=175)
    with pytest.raises(UserError, match="1 to 120 goods"): Kiosk(goods=500)
    with pytest.raises(UserError, match="cannot read"): read_wish("buy me a hat")
