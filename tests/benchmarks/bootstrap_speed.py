"""10,000 bootstrap resamples of 1,000 trajectories (aim: under 2 s): python tests/benchmarks/bootstrap_speed.py"""
import time

import numpy as np

from adwm.metrics import bootstrap_means, percentile

rng = np.random.default_rng(0)
x, w = rng.uniform(0, 1, 1000), rng.exponential(size=1000)
for name, weight in (("mean", None), ("self-normalised mean", w)):
    start, cpu = time.perf_counter(), time.process_time()
    draws = bootstrap_means(x, 10_000, 0, weight)
    low, high = percentile(draws)
    print(f"{name:22s} 10,000 x 1,000: {time.process_time() - cpu:.2f} s CPU, {time.perf_counter() - start:.2f} s wall; 90 % interval [{low:.4f}, {high:.4f}]")
