# %% [markdown]
# # Tiers and restarts
#
# KV at rest lives in blocks. Memory is small, so blocks move on to the SSD; the SSD has a budget, so some blocks leave
# for good. And a process may die: what has been written is still there for the next one.

# %%
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import kvlab
from kvlab import widgets
from kvlab.inspection import follow_blocks
from kvlab.workloads import load_workload

MODEL = "bundled"  # or "smollm2-135m" (kvlab models), a folder, a hub id such as "mlx-community/Qwen3-0.6B-4bit"
model = kvlab.load(MODEL)


# %% [markdown]
# Five conversations about five documents, two turns each, one request at a time. The budgets are in conversations, so
# that they mean about the same for every model: memory for two or three of them, SSD for all.


# %%
def documents():
    return load_workload("retrieval", tokens=400, n=5, turns=2, count=lambda text: len(model.encode(text)))


prompt = model.render(list(documents().requests()[0].messages))
one = kvlab.watch("full", [prompt], model, max_tokens=1)[0].completion.kv_bytes_live
roomy = follow_blocks(f"tiered:ram={2 * one},ssd={8 * one},write=through", documents(), model)
roomy.steps

# %% [markdown]
# Move the slider. Each row is a conversation, each piece a run of blocks; a conversation that was not heard of for a
# while rests on the SSD, and comes back from there in its second turn.

# %%
widgets.tiers_over_time(roomy)

# %% [markdown]
# The same with half of the memory and a quarter of the SSD. Conversations that come in turn are the worst case for *least
# recently used*, which every tier does unless told otherwise: blocks leave shortly before they are asked for again. The
# table shows what the second turns still found, and why they found no more.

# %%
tight = follow_blocks(f"tiered:ram={one},ssd={2 * one},write=through", documents(), model)
tight.steps.filter(turn=2).select("step", "conversation", "cached_tokens", "prompt_tokens", "ttft_ms", "miss")

# %%
widgets.tiers_over_time(tight)

# %% [markdown]
# ## Kill the process
# A child process serves one request over a folder, says when its blocks are written, and is killed with `SIGKILL`: no
# goodbye, no flush.

# %%
CHILD = """
import sys, time, kvlab
model = kvlab.load(sys.argv[1])
with kvlab.Decoder(model, sys.argv[2]) as decoder:
    done = decoder.generate([int(token) for token in sys.argv[3].split()], max_tokens=8)
    while decoder.store.stats()["unwritten_bytes"] > decoder.store.stats()["ram_bytes"] / 8:
        time.sleep(0.05)
    print(f"{done.cached_tokens} of {done.prompt_tokens} tokens cached, first token after {done.ttft_ms:.0f} ms", flush=True)
    time.sleep(600)
"""
folder = tempfile.TemporaryDirectory(prefix="kvlab-store-")
policy = f"tiered:write=through,dir={folder.name}"
arguments = [sys.executable, "-c", CHILD, str(model.path), policy, " ".join(map(str, prompt))]
path = str(Path(kvlab.__file__).parents[1])
child = subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": path})
print("first process: ", child.stdout.readline().strip())
child.send_signal(signal.SIGKILL)
print("it ended with signal", -child.wait())

# %% [markdown]
# This notebook's own process now opens the same folder.

# %%
with kvlab.Decoder(model, policy) as decoder:
    done = decoder.generate(prompt, max_tokens=8)
    print(
        f"second process: {done.cached_tokens} of {done.prompt_tokens} tokens cached, from {dict(done.cached_by_tier)}"
    )
    print("integrity:     ", decoder.store.check_integrity().problems or "nothing wrong")
folder.cleanup()

# %% [markdown]
# What was on the disk when the first process was killed is served again, and checked on every read. A prompt's last token
# is always computed: its distribution is what the answer starts from.
