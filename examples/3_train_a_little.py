"""Train a few steps of a shipped recipe, stop, resume, and look at what the run left."""

import tempfile
from pathlib import Path

from groundthink import load, load_recipe, resume, train

small = ["model.d_model=64", "phases[0].steps=6", "phases[0].rows=8", "phases[1].steps=2", "phases[1].rows=7"]
config = load_recipe("demo", [*small, "evaluate_every=0", "phases[0].advance=[]"])

with tempfile.TemporaryDirectory() as parent:
    folder = Path(parent) / "run"
    train(config, folder, stop_at=4)
    result = resume(folder)
    print("finished at step", result.step, "after", result.tokens, "tokens")
    print(sorted(path.name for path in folder.iterdir()))
    print("loaded again:", type(load(folder)).__name__)
