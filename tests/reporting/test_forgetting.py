import math

from ncu_hf.reporting.forgetting import forget_summary


def line(step, forget, retain, **more):
    confidence = {"clean_confidence_forget": forget, "clean_confidence_retain": retain}
    quantiles = {f"clean_confidence_{name}": value for name, value in (("q10", 0.1), ("q50", 0.5), ("q90", 0.9))}
    return {"step": step, "loss": 1.0, **confidence, **quantiles, **more}


def test_first_and_last_line_of_the_last_phase():
    history = {
        "negative_prompt": [line(10, 0.3, 0.4)],
        "unlearning": [line(10, 0.2, 0.5), line(20, 0.1, 0.7, clean_confidence_q50=0.6), {"step": 25, "train_loss": 1}],
    }
    assert forget_summary(history, 0.1) == {
        "phase": "unlearning",
        "share": 0.1,
        "window": 1,
        "n_steps": 25,
        "confidence": {
            "forget": {"first": 0.2, "last": 0.1},
            "retain": {"first": 0.5, "last": 0.7},
            "q10": 0.1,
            "q50": 0.6,
            "q90": 0.9,
        },
    }
    assert forget_summary({**history, "unlearning": []}, 0.1)["phase"] == "negative_prompt"


def test_lines_without_a_finite_value_do_not_count():
    history = {"unlearning": [line(10, math.nan, 0.5), line(20, 0.1, 0.7), {"step": 30, "loss": 1.0}]}
    found = forget_summary(history, 0.1)["confidence"]
    assert found["forget"] == {"first": 0.1, "last": 0.1}
    assert found["retain"] == {"first": 0.5, "last": 0.7}


def test_a_method_that_forgets_nothing_has_no_summary():
    assert forget_summary({"clip": [{"step": 1, "loss": 2.0}]}, 0.1) is None
    assert forget_summary({"x": [{"step": 1, "clean_confidence_forget": 0.1}]}, 0.1) is None
    assert forget_summary({}, 0.1) is None
