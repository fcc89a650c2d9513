"Milliseconds of processor time to open a game of ALFWorld and to act in it: the engine as it comes, with its waste removed, and as a graph of states: python tests/benchmarks/alfworld_steps.py [games]"
import sys, time

from adwm import alfworld as alf
from adwm.core import key_rng, shared_data

if missing := alf.alfworld_missing(): sys.exit(missing)
n = int(sys.argv[1]) if len(sys.argv) > 1 else 6


def measure(name, games, open_, turns=12):
    "Open every game and take random steps; `open_` returns the first page and a function from the actions so far to the next page."
    opening = acting = 0.0
    for g in games:
        start = time.process_time(); page, play = open_(g); opening += time.process_time() - start
        start, walk = time.process_time(), ()
        for t in range(turns): walk += (page.choices[int(key_rng(0, g.id, t).integers(len(page.choices)))],); page = play(walk)
        acting += time.process_time() - start
    print(f"{name:36s} open {1000 * opening / len(games):7.0f} ms   step {1000 * acting / len(games) / turns:6.2f} ms of processor", flush=True)


def live(game):
    "The engine itself."
    played = alf.AlfredGame(game)
    return played.page(), lambda walk: played.step(walk[-1])


def rows(name, games):
    "The three ways; houses a second time with everything remembered."
    street = alf.Street(alf.AlfworldEngine(games))
    house = lambda g: (street.page(g.id, ()), lambda walk: street.page(g.id, walk))
    measure(f"{name}, engine without waste", games, live)
    measure(f"{name}, graph", games, house); measure(f"{name}, graph, the same walk", games, house)


games = alf.generate_games(n, 0)
alf.speed_up(False); alf.AlfredGame(games[0])
measure("generated, engine as it comes", games[:max(2, n // 3)], live)
alf.speed_up(True); rows("generated", games)
if (path := shared_data("alfworld", "valid_seen.jsonl.gz")): rows("benchmark's", alf.load_games(path)[:max(2, n // 2)])
