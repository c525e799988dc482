"""`evaluate.Metric` subclasses: nothing is downloaded, and several processes can add what each of them computed.

Each lies in a file that `evaluate.load` takes by its path, where `ncu_hf` is installed:

```python
metric = evaluate.load("ncu_hf/evaluation/metrics/retrieval_recall.py")
```

In one process the inputs stay in memory. With more (`num_process`, `process_id`) they pass through files, so that the
processes must share `cache_dir` and `experiment_id`; both are then required, as the library's defaults collide between
runs.
"""

from ncu_hf.evaluation.metrics.forget_set import ForgetSet
from ncu_hf.evaluation.metrics.linear_probe_accuracy import LinearProbeAccuracy
from ncu_hf.evaluation.metrics.retrieval_recall import RetrievalRecall
from ncu_hf.evaluation.metrics.zero_shot_accuracy import ZeroShotAccuracy

__all__ = ["ForgetSet", "LinearProbeAccuracy", "RetrievalRecall", "ZeroShotAccuracy"]
