"""Peak memory of a command and of everything it starts.

    python tests/benchmarks/peak_memory.py papermill nbs/eval.ipynb /tmp/run.ipynb -p profile smoke
    python tests/benchmarks/peak_memory.py --stage imagination --agents b-early,c-iter0   # one stage of WebShop's cell, two agents, two workers

Samples the process tree twice a second (Linux) and prints its largest proportional set size (pages that processes share are counted once), when
that was, and the largest of each process. A stage first makes the world model it needs, outside the measurement and in a cache of its own: as
large as the cell's but hardly trained, unless `--trained` is given.
"""
import argparse
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path


def tree(pid):
    "A process and its living descendants."
    parents = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit(): continue
        try: parents.setdefault(int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1]), []).append(int(entry.name))
        except OSError: pass   # it has just ended
    found = [pid]
    for p in found: found += parents.get(p, [])
    return found


def pss(pid):
    "Proportional set size in bytes; 0 for a process that has ended."
    try: lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError: return 0
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("Pss:")), 0)


def watch(command, every=.5):
    "Run a command, until Ctrl-C at the longest: (exit status, [(seconds, {pid: bytes})])."
    start, samples = time.monotonic(), []
    process = subprocess.Popen(command)
    try:
        while process.poll() is None:
            samples.append((time.monotonic() - start, {p: pss(p) for p in tree(process.pid)}))
            time.sleep(every)
    except KeyboardInterrupt: process.terminate()   # its workers end with it
    return process.wait(), samples


def report(samples):
    "The peak of the sum, when it was, and the peak of each process that ever held 50 MB."
    at, parts = max(samples, key=lambda s: sum(s[1].values()))
    print(f"peak {sum(parts.values())/1e9:.2f} GB after {at:.0f} of {samples[-1][0]:.0f} s, in {sum(v > 5e7 for v in parts.values())} processes")
    for pid in sorted({p for _, s in samples for p, v in s.items() if v > 5e7}):
        when, held = max(((t, s.get(pid, 0)) for t, s in samples), key=lambda x: x[1])
        print(f"  process {pid}: {held/1e9:.2f} GB after {when:.0f} s")


def configured(args):
    "The cell's configuration with one seed and a cache of its own; a world model is only as large as the cell's unless it is to be trained."
    from adwm.config import load_config
    config = load_config(cell=args.cell, seeds="0")
    fits = config.fits if args.trained else {name: replace(part, train=part.train | dict(joint=20, cached=100)) for name, part in config.fits.items()}
    return replace(config, fits=fits, cache=".cache/memory", estimators=tuple(replace(e, seeds=()) for e in config.estimators))


def jobs_of(config, args):
    "The jobs of one stage that concern the agents; of the estimator, where the stage has several."
    from adwm.stages import plan, workbench
    jobs = [job for job in plan(workbench(config))[args.stage] if set(job) & set(args.agents.split(",")) and job[0] in (args.estimator, job[-1])]
    if not jobs: raise SystemExit(f"no job of the stage '{args.stage}' concerns {args.agents}")
    return jobs


def run_stage(args):
    "Make what the stage needs, or run it again where that is there."
    from adwm.evaluation import run_jobs
    from adwm.stages import STAGES, cache_folder, fit_stage, workbench
    config = configured(args)
    bench, fit = workbench(config), config.estimators[args.estimator].fit
    if args.prepare:
        for old in cache_folder(config).glob("[!w]*"): shutil.rmtree(old)   # all but the world models
        if args.stage == "imagination" and fit: fit_stage(bench, args.estimator)
    else: run_jobs([(STAGES[args.stage], (bench, *job)) for job in jobs_of(config, args)], config.workers, args.stage)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--stage", choices=("imagination", "probes", "classical estimators"))
    parser.add_argument("--cell", default="webshop-iter1")
    parser.add_argument("--estimator", type=int, default=0, help="its number in the cell's list")
    parser.add_argument("--agents", default="b-early,c-iter0")
    parser.add_argument("--trained", action="store_true", help="train the world model as the cell does (minutes)")
    parser.add_argument("--prepare", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--measured", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("command", nargs=argparse.REMAINDER)
    args = parser.parse_args()
    if args.prepare or args.measured: return run_stage(args)
    if bool(args.stage) == bool(args.command): parser.error("name a command or a stage")
    again = [sys.executable, *sys.argv]
    if args.stage: subprocess.run([*again, "--prepare"], check=True)
    status, samples = watch(args.command or [*again, "--measured"])
    report(samples)
    sys.exit(status)


if __name__ == "__main__": main()
