"Seconds of continuation guidance for 200 rows on one core; an untrained model writes 12 tokens where a trained one writes about five."
import time
import torch
from adwm.adapter import Adapter, Continuation
from adwm.agents import LMAgent
from adwm.envs import Corridor
from adwm.policies import ReferencePolicy
from adwm.rollouts import make_rows, rollout
from adwm.envs import State
from adwm.schedule import cosine_schedule
from adwm.training import Recipe, build_model, train_tokenizer


def main(rows=200, turns=4):
    torch.set_num_threads(1)
    world = Corridor(30)
    texts = ["press the lamp in the last room", *[f"room {i}" for i in range(30)], *world.choices]
    tokenizer = train_tokenizer(texts*3, 400)
    agent = LMAgent(build_model(Recipe("default"), tokenizer), tokenizer, world.domain)
    adapter = Adapter(64, agent.width).requires_grad_(False)
    episodes = rollout(world, ReferencePolicy(world.domain), make_rows([world.task(i) for i in range(rows)], [1.]), 0, turns + 1)
    long = [e for e in episodes if len(e.turns) > turns]
    states = [State(e.task, e.turns[turns].obs, world.choices, e.turns[:turns], None, torch.randn(turns + 1, 64)) for e in long]
    start = time.process_time()
    guide = Continuation(agent, adapter, cosine_schedule(50))(states, [e.turns[turns].action for e in long])
    read = time.process_time() - start
    z, k = torch.randn(len(states), 64), torch.full((len(states),), 5)
    start = time.process_time()
    guide(z, k, lambda zk, k: .1*zk)
    step = time.process_time() - start
    print(f"{len(states)} rows, {sum(p.numel() for p in agent.model.parameters()):,} parameters: histories {read:.2f} s a turn, {step:.2f} s a guided step (CPU, one core)")


if __name__ == "__main__": main()
