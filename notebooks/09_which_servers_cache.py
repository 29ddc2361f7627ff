# %% [markdown]
# # Which server's cache?
#
# Ollama, LM Studio, llama.cpp, mlx-lm, oMLX and vMLX differ most in what they keep of a conversation, and where. Here
# three of their designs run on one decoder, with the same model and the same prompts, and you choose whom they are for.

# %%
import kvlab
from kvlab import charts, widgets

MODEL = "bundled"  # or "smollm2-135m" (kvlab models), a folder, a hub id such as "mlx-community/Qwen3-0.6B-4bit"
model = kvlab.load(MODEL)

# %% [markdown]
# A *system* is the cache of one server and what its request loop does with it. Every setting has a source.

# %%
kvlab.System.parse("ollama")

# %% [markdown]
# Three designs: one live sequence and one request at a time (`ollama`), blocks of 256 tokens on the SSD (`omlx`), and
# kvlab's own (`tiered`). First one agent, whose process ends half-way: whatever lay in memory is gone then.

# %%
DESIGNS = [
    "full",
    kvlab.System.parse("ollama:context=32768"),
    kvlab.System.parse("omlx:ssd=2GB"),
    "tiered:ram=1GB,ssd=2GB",
]
one = kvlab.compare(DESIGNS, workload="agent", model=model, turns=4, restart=True)
one

# %%
charts.ttft_by_turn(one.frame())

# %% [markdown]
# Then four agents at once behind one system prompt.

# %%
four = kvlab.compare(DESIGNS, workload="agent", model=model, turns=2, n=4, concurrency=4)
four

# %% [markdown]
# How many agents, how many turns, how much memory for live KV? The bars are waiting; what does not fit is pale.

# %%
crowds = {1: one, 4: four}
widgets.which_design_wins(one.frame(), crowds)

# %% [markdown]
# The same with half of the memory that four agents take without sharing. One that runs alone fits, and the others wait
# for it; those that share a prefix hold it once.

# %%
tight = widgets.which_design_wins(one.frame(), crowds)
alone = four.frame().filter(policy="full", metric="kv_bytes_live")["value"].max()
tight.set(memory=round(2 * alone / 1e6))
tight

# %% [markdown]
# ## The saved rows
# All six systems, as released and as an article of 2026 describes them, over fifteen turns and up to 32 agents, were
# measured and are kept in kvlab's repository; `docs/stack.md` tells what they say. In a clone, this cell shows them.

# %%
from IPython.display import display

from kvlab.figures.build import source_tree
from kvlab.figures.stack_page.page import read_stack

saved = None
try:
    saved = read_stack(source_tree().rows)
except kvlab.KvlabError as error:  # an installed kvlab has no saved rows
    print(error)
if saved is None:
    print("No saved rows here: kvlab figures --rerun --only stack-at-a-glance, in a clone, measures them.")
else:
    turns, agents = (saved.rows.filter(workload=part) for part in ("stack-turns", "stack-agents"))
    display(widgets.which_design_wins(turns, agents))
