"Milliseconds of processor time (Java and Python) for a page of ScienceWorld: python tests/benchmarks/scienceworld_steps.py [episodes]"
import sys, time

from adwm import scienceworld as sw
from adwm.policies import ReferencePolicy
from adwm.rollouts import make_rows, rollout

if missing := sw.scienceworld_missing(): sys.exit(missing)
n = int(sys.argv[1]) if len(sys.argv) > 1 else 12
sim = sw.ScienceWorldSimulator(engines=1, focus=False)
tasks = sim.draw(n, "test")
player = sim.players[0]


def clock():
    fields = open(f"/proc/{player.engine.process.pid}/stat").read().rsplit(")", 1)[1].split()
    return time.perf_counter(), time.process_time() + (int(fields[11]) + int(fields[12])) / 100


def report(name, count, start):
    wall, cpu = (b - a for a, b in zip(start, clock()))
    print(f"{name:28s} {count:5d} {1000 * cpu / count:8.1f} ms of processor {1000 * wall / count:8.1f} ms of wall each")


for name in ("cold", "warm"):
    player.pages.clear(); player.games.clear(); start = clock()
    sim.tasks([t.id for t in tasks]); report(f"open a game ({name})", n, start)
start = clock()
episodes = rollout(sim, ReferencePolicy(sim.domain), make_rows(tasks, [1.0]), 0, sw.SCIENCE_HORIZON)
report("page in lockstep", sum(len(e.turns) for e in episodes), start)
start, player.counts = clock(), dict.fromkeys(player.counts, 0)
rollout(sim, ReferencePolicy(sim.domain), make_rows(tasks, [1.0]), 0, sw.SCIENCE_HORIZON)
report("the same from memory", sum(len(e.turns) for e in episodes), start)
print(player.counts)
sim.close()
