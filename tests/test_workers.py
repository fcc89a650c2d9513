"No worker outlives the run that started it: kills, Ctrl-C, errors, and what a worker has started itself."
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from adwm.core import worker_pool

HERE = Path(__file__).resolve().parent


def linger(folder):
    "A job that does not end: it starts a process that reads its standard input, as a Java engine does, and writes both numbers down."
    child = subprocess.Popen(["cat"], stdin=subprocess.PIPE)
    (Path(folder) / f"{os.getpid()}-{child.pid}").touch()
    time.sleep(60)


def count(folder):
    (Path(folder) / str(time.time_ns())).touch()


def alive(pid):
    "Whether a process runs; one that waits to be reaped does not."
    try: return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError: return False


def wait_for(condition, seconds):
    "Whether something came true in time."
    end = time.monotonic() + seconds
    while time.monotonic() < end and not condition(): time.sleep(.02)
    return condition()


def working_parent(folder):
    "(a process in a group of its own whose two workers are busy and whose queue is long, all numbers below it)."
    code = f"from adwm.core import worker_pool; from test_workers import linger\nwith worker_pool(2) as pool: list(pool.map(linger, [{str(folder)!r}] * 6))"
    path = os.pathsep.join([str(HERE), str(HERE.parent)])
    parent = subprocess.Popen([sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": path}, start_new_session=True, stderr=subprocess.DEVNULL)
    assert wait_for(lambda: len(list(folder.iterdir())) == 2, 60)
    return parent, [int(pid) for file in folder.iterdir() for pid in file.name.split("-")]


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks processes up in /proc")
@pytest.mark.parametrize("end", [lambda p: p.kill(), lambda p: p.terminate(), lambda p: p.send_signal(signal.SIGINT), lambda p: os.killpg(p.pid, signal.SIGINT)],
                         ids=["kill", "term", "interrupt", "Ctrl-C to the whole group"])
def test_workers_end_with_their_parent(tmp_path, end):
    parent, below = working_parent(tmp_path)
    try:
        assert all(map(alive, below)) and len(below) == 4
        end(parent)
        assert wait_for(lambda: not any(map(alive, below)), 3)
        assert parent.wait(3) != 0 and len(list(tmp_path.iterdir())) == 2   # the queue was not worked off
    finally:
        for pid in [parent.pid, *below]:
            if alive(pid): os.kill(pid, signal.SIGKILL)


def test_a_failure_lets_the_other_jobs_finish(tmp_path):
    with pytest.raises(FileNotFoundError), worker_pool(2) as pool:
        jobs = [pool.submit(count, folder) for folder in (tmp_path / "missing", *[tmp_path] * 4)]
        jobs[0].result()
    assert len(list(tmp_path.iterdir())) == 4


def test_workers_have_one_thread_and_end_with_the_block():
    with worker_pool(2) as pool:
        assert pool.submit(os.getenv, "OMP_NUM_THREADS").result() == os.environ["OMP_NUM_THREADS"]
        workers = list(pool.map(_pid, range(4)))
    assert os.getpid() not in workers and not any(map(alive, workers))


def _pid(_): return os.getpid()
