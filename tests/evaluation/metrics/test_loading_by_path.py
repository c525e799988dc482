"""Each metric through `evaluate.load` of its file, in a fresh process without network and without any cache."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ncu_hf.evaluation.detection import forget_set_metrics
from ncu_hf.evaluation.linear_probe import linear_probe
from ncu_hf.evaluation.retrieval import evaluate_retrieval
from ncu_hf.evaluation.zero_shot import zero_shot_metrics

ROOT = Path(__file__).resolve().parents[3]
FOLDER = ROOT / "ncu_hf" / "evaluation" / "metrics"
LOAD = """
import json, socket, sys
from concurrent.futures import ThreadPoolExecutor

def refuse(*_):
    raise AssertionError("a metric opened a connection")

socket.socket.connect = socket.getaddrinfo = refuse
import evaluate

def one(name, columns, options):
    metric = evaluate.load(f"{sys.argv[1]}/{name}.py")
    metric.add_batch(**columns)
    return {"class": type(metric).__name__, "module": type(metric).__module__, "numbers": metric.compute(**options)}

def several(name, columns, options):
    # Threads stand for processes.
    def process(rank):
        part = slice(0, 25) if rank == 0 else slice(25, None)
        place = {"cache_dir": "shared", "experiment_id": "run", "num_process": 2, "process_id": rank}
        metric = evaluate.load(f"{sys.argv[1]}/{name}.py", timeout=30, **place)
        metric.add_batch(**{column: values[part] for column, values in columns.items()})
        return metric.compute(**options)
    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(process, range(2)))

results = {}
for name, (columns, options) in json.loads(sys.stdin.read()).items():
    results[name] = one(name, columns, options) | {"several": several(name, columns, options)}
print(json.dumps(results))
"""


def inputs():
    generator = torch.Generator().manual_seed(0)
    vectors = torch.randn(40, 3, generator=generator)
    labels = torch.arange(40) % 4
    rows = {"predictions": vectors.tolist(), "references": labels.tolist()}
    modality, split = ["image"] * 12 + ["text"] * 28, ["train"] * 30 + ["test"] * 10
    pairs = {"predictions": vectors[:, 0].tolist(), "references": (labels == 0).long().tolist()}
    return {
        "retrieval_recall": (rows | {"modality": modality}, {"bootstrap": 30}),
        "zero_shot_accuracy": (rows, {"class_weights": vectors[:4].tolist(), "seed": 2}),
        "linear_probe_accuracy": (rows | {"split": split}, {"primary": "mean_per_class"}),
        "forget_set": (pairs, {"forget_ratio": 0.25}),
    }


def expected():
    generator = torch.Generator().manual_seed(0)
    vectors = torch.randn(40, 3, generator=generator)
    labels = torch.arange(40) % 4
    images, texts = vectors[:12], vectors[12:]
    recall = evaluate_retrieval(images, texts, image_groups=labels[:12], caption_groups=labels[12:], bootstrap=30)
    probe = linear_probe(vectors[:30], labels[:30], vectors[30:], labels[30:], 4, primary="mean_per_class")
    return {
        "RetrievalRecall": recall,
        "ZeroShotAccuracy": zero_shot_metrics(vectors, labels, vectors[:4], seed=2),
        "LinearProbeAccuracy": probe[0],
        "ForgetSet": forget_set_metrics(vectors[:, 0], labels == 0, 0.25),
    }


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    home = tmp_path_factory.mktemp("empty_home")
    environment = {
        "HF_HOME": str(home),
        "HOME": str(home),
        "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "PATH": "",
    }
    result = subprocess.run(
        [sys.executable, "-c", LOAD, str(FOLDER)],
        input=json.dumps(inputs()),
        env=environment,
        cwd=home,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout.splitlines()[-1])


def test_every_metric_of_the_package_is_tried():
    files = {path.stem for path in FOLDER.glob("*.py")} - {"__init__", "base"}
    assert files == set(inputs())


@pytest.mark.parametrize("name", inputs())
def test_a_metric_loads_by_its_path_and_equals_the_function(loaded, name):
    # Of the copy that the library made, not of the package.
    assert loaded[name]["module"].startswith("evaluate_modules.")
    assert loaded[name]["numbers"] == expected()[loaded[name]["class"]]


@pytest.mark.parametrize("name", inputs())
def test_several_processes_give_the_result_of_one(loaded, name):
    assert loaded[name]["several"] == [loaded[name]["numbers"], None]
