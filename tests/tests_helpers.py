"Small things that several tests build or do."
import signal
import subprocess
import sys
import textwrap

from adwm.core import key_rng
from adwm.envs import Corridor
from adwm.policies import ReferencePolicy, ScriptedPolicy
from adwm.rollouts import make_rows, rollout
from adwm.shop import generated_shop, sample_goals
from adwm.webshop import WebShopSimulator, expert


def corridor_episodes(n=10, epsilon=0.3, seed=0, horizon=6):
    "n episodes of an epsilon-greedy walk to the lamp."
    world = Corridor()
    east = ScriptedPolicy("east", lambda s: "press" if s.obs == "room 2" else "go east")
    return rollout(world, east, make_rows([world.task(i) for i in range(n)], [epsilon]), seed, horizon, env="corridor")


def small_shop(seed, families, goals, split="eval", goal_seed=0):
    "(simulator, expert): a small shop with some of its goals, and the teacher that knows them."
    shop = generated_shop(seed, families)
    simulator = WebShopSimulator(shop, sample_goals(shop, goals, split, goal_seed))
    return simulator, lambda s: expert(shop, simulator.goals[s.task.id], s)


def random_walk(sim, task, seed, n=12):
    "(state, action, reference) of a walk by the reference distribution."
    state = sim.reset([task], [()])[0]
    for turn in range(n):
        u = sim.domain.reference(task, state.obs, state.choices)
        action = u.sample(key_rng(seed, task.id, turn))
        yield state, action, u
        out = sim.step([state], [action], [()])[0]
        if out.terminated: return
        state = out.state


def finish(sim, state, choose, turns):
    "The outcome of acting by a function of the state until the episode ends, or after so many turns."
    for _ in range(turns):
        out = sim.step([state], [choose(state)], [()])[0]
        state = out.state
        if out.terminated: break
    return out


def survives_a_kill(folder, build, sim, tasks, at, horizon, env):
    "A random collection killed at its n-th step and called again equals one that nobody killed; `build` is the source of another such `sim` and `tasks`."
    code = textwrap.dedent("""
        import os, signal, sys
        from adwm.policies import ReferencePolicy
        from adwm.rollouts import make_rows, rollout
        {build}
        calls, step = 0, type(sim).step
        def counted(self, *a):
            global calls; calls += 1
            if calls == {at}: os.kill(os.getpid(), signal.SIGKILL)
            return step(self, *a)
        type(sim).step = counted
        rollout(sim, ReferencePolicy(sim.domain), make_rows(tasks, [1.0]), 5, {horizon}, 2, sys.argv[1], {env!r})""").format(build=build, at=at, horizon=horizon, env=env)
    whole, cut = folder / "whole.jsonl", folder / "cut.jsonl"
    assert subprocess.run([sys.executable, "-c", code, str(cut)]).returncode == -signal.SIGKILL
    for path in (whole, cut): rollout(sim, ReferencePolicy(sim.domain), make_rows(tasks, [1.0]), 5, horizon, 2, path, env)
    assert cut.read_bytes() == whole.read_bytes() and len(whole.read_text().splitlines()) == len(tasks)
