"Milliseconds of processor time to open a game of ALFWorld and to act in it, with and without the parsing cache: python tests/benchmarks/alfworld_steps.py [games]"
import sys, time

from adwm import alfworld as alf
from adwm.core import key_rng, shared_data

if missing := alf.unavailable(): sys.exit(missing)
n = int(sys.argv[1]) if len(sys.argv) > 1 else 6


def measure(name, games, turns=6):
    opening = acting = 0.0
    for g in games:
        start = time.process_time(); live = alf.AlfredGame(g); page = live.page(); opening += time.process_time() - start
        start = time.process_time()
        for t in range(turns): page = live.step(str(key_rng(0, g.id, t).choice(page.choices)))
        acting += time.process_time() - start
    print(f"{name:36s} open {1000 * opening / len(games):7.0f} ms   step {1000 * acting / len(games) / turns:6.1f} ms of processor")


games = alf.generate_games(n, 0)
alf.cache_parsing(False); alf.AlfredGame(games[0])
measure("generated, no cache", games)
alf.cache_parsing(True); measure("generated, cache, first time", games); measure("generated, cache, again", games)
if (path := shared_data("alfworld", "valid_seen.jsonl.gz")):
    own = alf.load_games(path)[:max(2, n // 2)]
    measure("benchmark's, cache, first time", own); measure("benchmark's, cache, again", own)
