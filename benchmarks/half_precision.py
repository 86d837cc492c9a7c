"""What training in bfloat16 (`TrainConfig.bf16`) does to scores: runs in float32 and in bfloat16, paired by seed.

    python benchmarks/half_precision.py --data-dir DIR [--methods prefix-tuning] [--tasks reviews,SST-2]
                                        [--seeds 0,1,2,3,4,5,6,7,8,9] [--steps 150] [--root build/half_precision]

On the film reviews and on SST-2 (split by "dept": validation rows come from the training split, the official
validation set is the test), 16 rows a step, each run scored once, after its last step, on the test rows. Finished runs
are kept below --root and not done again. A difference is bfloat16 less float32, in points of accuracy.
"""

from __future__ import annotations

import statistics
from pathlib import Path

from changed_defaults import difference
from common import numbers, parse, parser
from report import table

from softprompts.backbones.packaged import DEFAULT_MODEL
from softprompts.experiments.run_record import Run
from softprompts.experiments.workbench import Workbench
from softprompts.methods import make_config
from softprompts.tasks.data import Data
from softprompts.training import TrainConfig


def main() -> None:
    arguments = parser(__doc__, rounds=1)
    arguments.add_argument("--data-dir")
    arguments.add_argument("--methods", type=lambda text: text.split(","), default=["prefix-tuning"])
    arguments.add_argument("--tasks", type=lambda text: text.split(","), default=["reviews", "SST-2"])
    arguments.add_argument("--seeds", type=numbers, default=list(range(10)))
    arguments.add_argument("--steps", type=int, default=150)
    arguments.add_argument("--root", type=Path, default=Path("build/half_precision"))
    options = parse(arguments, steps=5, seeds=[0, 1], tasks=["reviews"])
    data = {"reviews": Data(task="reviews"), "SST-2": Data(task="glue/sst2", split="dept", data_dir=options.data_dir)}
    lines = []
    for name in options.tasks:
        bench = Workbench(DEFAULT_MODEL, data[name], max_length=64, evaluate=False)
        for method in options.methods:
            scores: list[dict[tuple[str, int], float]] = []
            for bf16 in (False, True):
                budget = {"max_steps": options.steps, "batch_size": 16, "eval_batch_size": 64, "bf16": bf16}
                runs = [Run(make_config(method), TrainConfig(**budget, seed=seed)) for seed in options.seeds]
                results = [result for _, result in bench.run_all(runs, root=options.root, progress=False)]
                found = [
                    100 * result["test_metrics"][bench.task.metrics[0]] for result in results if result is not None
                ]
                scores.append({(name, seed): score for seed, score in zip(options.seeds, found, strict=True)})
                print(method, name, "bf16" if bf16 else "float32", [f"{score:.1f}" for score in found], flush=True)
            means = [f"{statistics.fmean(each.values()):.2f}" for each in scores]
            lines.append([method, name, *means, difference(scores[1], scores[0]), str(len(options.seeds))])
    print(table(["method", "task", "float32", "bfloat16", "difference (95 % interval)", "pairs"], lines))


if __name__ == "__main__":
    main()
