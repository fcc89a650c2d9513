"Small things that several tests build."
from adwm.envs import Corridor
from adwm.policies import ScriptedPolicy
from adwm.rollouts import make_rows, rollout


def corridor_episodes(n=10, epsilon=0.3, seed=0, horizon=6):
    "n episodes of an epsilon-greedy walk to the lamp."
    world = Corridor()
    east = ScriptedPolicy("east", lambda s: "press" if s.obs == "room 2" else "go east")
    return rollout(world, east, make_rows([world.task(i) for i in range(n)], [epsilon]), seed, horizon, env="corridor")
