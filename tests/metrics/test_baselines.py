from __future__ import annotations

import numpy as np
import pytest

from scstate_lora.metrics import LinearEffects, context_mean, mean_shift, no_change, perturbed_mean, shifted

N_GENES = 40


def test_baselines():
    control = np.array([[0.0, 1.0, 2.0], [1.0, 1.0, 0.0]], dtype=np.float32)
    deltas = [np.array([1.0, -3.0, 0.0]), np.array([0.0, -1.0, 2.0])]
    assert no_change(control) is control
    np.testing.assert_allclose(mean_shift(control, deltas), [[0.5, 0.0, 3.0], [1.5, 0.0, 1.0]])
    np.testing.assert_allclose(shifted(control, deltas[0]), [[1.0, 0.0, 2.0], [2.0, 0.0, 0.0]])
    np.testing.assert_allclose(perturbed_mean(control, deltas), [[0.5, -2.0, 1.0]] * 2)
    np.testing.assert_allclose(context_mean(control, np.array([0.5, 2.0, 1.0])), [[0.5, 2.0, 1.0]] * 2)
    for predicted in (mean_shift(control, deltas), perturbed_mean(control, deltas), context_mean(control, deltas[0])):
        assert predicted.dtype == np.float32
    np.testing.assert_array_equal(control, [[0, 1, 2], [1, 1, 0]])


def test_baselines_without_training_context_raises():
    for baseline in (mean_shift, perturbed_mean):
        with pytest.raises(ValueError, match="there is none"):
            baseline(np.zeros((2, 3)), [])
    with pytest.raises(ValueError, match="there is none"):
        context_mean(np.zeros((2, 3)), None)


def _contexts(n, *, slope, noise=0.05, seed=0, n_perturbations=1):
    """`n` contexts along one axis; the change of every perturbation grows along it by `slope`."""
    rng = np.random.default_rng(seed)
    axis, base, direction = rng.normal(size=(3, N_GENES))
    own = rng.normal(size=(n_perturbations, N_GENES))
    place = np.linspace(-1, 1, n)
    controls = {f"c{i}": base + place[i] * axis + noise * rng.normal(size=N_GENES) for i in range(n)}
    deltas = {
        (f"p{p}", f"c{i}"): own[p] + slope * place[i] * direction + noise * rng.normal(size=N_GENES)
        for i in range(n)
        for p in range(n_perturbations)
    }
    return controls, deltas


def _left_out_errors(controls, deltas):
    """Mean squared error of the ridge and of the mean shift, each context left out in turn."""
    errors = []
    for context in controls:
        train = {key: value for key, value in deltas.items() if key[1] != context}
        fitted = LinearEffects.fit({k: v for k, v in controls.items() if k != context}, train)
        for name in {key[0] for key in deltas if key[1] == context}:
            shift = np.mean([value for key, value in train.items() if key[0] == name], axis=0)
            real = deltas[name, context]
            errors.append(
                [np.square(fitted.predict(controls[context], name) - real).mean(), np.square(shift - real).mean()]
            )
    return np.mean(errors, axis=0)


@pytest.mark.parametrize("n_perturbations", [1, 4])
def test_ridge_beats_the_mean_shift_where_the_change_follows_the_controls(n_perturbations):
    ridge, shift = _left_out_errors(*_contexts(6, slope=1.0, n_perturbations=n_perturbations))
    assert ridge < 0.3 * shift


@pytest.mark.parametrize("n", [3, 4, 8])
def test_ridge_stays_near_the_mean_shift_where_it_does_not(n):
    ratios = []
    for seed in range(8):
        ridge, shift = _left_out_errors(*_contexts(n, slope=0.0, noise=0.3, seed=seed))
        ratios.append(ridge / shift)
    assert np.mean(ratios) < 1.1
    assert np.max(ratios) < 1.3


def test_few_contexts_give_exactly_the_mean_shift():
    for n in (1, 2):
        controls, deltas = _contexts(n, slope=1.0)
        fitted = LinearEffects.fit(controls, deltas)
        assert fitted.penalty == np.inf
        other = np.random.default_rng(3).normal(size=N_GENES) * 10
        np.testing.assert_allclose(fitted.predict(other, "p0"), np.mean(list(deltas.values()), axis=0))


def test_contexts_that_look_alike_give_the_mean_shift():
    controls, deltas = _contexts(5, slope=1.0)
    fitted = LinearEffects.fit(dict.fromkeys(controls, np.ones(N_GENES)), deltas)
    np.testing.assert_allclose(fitted.predict(np.ones(N_GENES), "p0"), np.mean(list(deltas.values()), axis=0))


def test_slopes_agree_with_regression_with_an_intercept_for_each_perturbation():
    # An unbalanced design, where the averages of two perturbations are over different contexts.
    controls, deltas = _contexts(7, slope=2.0, n_perturbations=3, noise=0.2)
    for key in [("p0", "c0"), ("p0", "c1"), ("p2", "c6")]:
        del deltas[key]
    fitted = LinearEffects.fit(controls, deltas)
    assert np.isfinite(fitted.penalty)
    keys = sorted(deltas)
    z = {c: (controls[c] - fitted.origin) @ fitted.axes.T for c in controls}
    dummies = np.array([[name == f"p{p}" for p in range(3)] for name, _ in keys], dtype=float)
    x = np.hstack([dummies, np.array([z[c] for _, c in keys])])
    penalty = np.diag([0.0] * 3 + [fitted.penalty * len(keys)] * fitted.axes.shape[0])
    weights = np.linalg.solve(x.T @ x + penalty, x.T @ np.array([deltas[key] for key in keys]))
    np.testing.assert_allclose(fitted.slopes, weights[3:], atol=1e-8)
    for p in range(3):
        np.testing.assert_allclose(fitted.effects[f"p{p}"], weights[p], atol=1e-8)
    np.testing.assert_allclose(fitted.predict(controls["c0"], "p0"), weights[0] + z["c0"] @ weights[3:], atol=1e-8)
    assert np.square(z["c0"]).max() > 0
    np.testing.assert_allclose(np.mean([v[0] ** 2 for v in z.values()]), 1.0)


def _by_features(n, *, noise=0.1, seed=0):
    rng = np.random.default_rng(seed)
    weights = rng.normal(size=(4, N_GENES))
    x = np.hstack([np.ones((n, 1)), rng.normal(size=(n, 3))])
    features = {f"p{i}": row for i, row in enumerate(x)}
    deltas = {(f"p{i}", "c0"): row @ weights + noise * rng.normal(size=N_GENES) for i, row in enumerate(x)}
    return {"c0": rng.normal(size=N_GENES)}, deltas, features


def test_features_predict_perturbations_that_training_never_saw():
    controls, deltas, features = _by_features(30)
    train = {key: value for key, value in deltas.items() if key[0] not in ("p0", "p1")}
    fitted = LinearEffects.fit(controls, train, features=features)
    for name in ("p0", "p1"):
        predicted = fitted.predict(controls["c0"], name, features=features[name])
        assert np.corrcoef(predicted, deltas[name, "c0"])[0, 1] > 0.98
    # A combination has the sum of its parts' features, the number of parts first: its effect is the sum too.
    both = fitted.predict(controls["c0"], "p0+p1", features=features["p0"] + features["p1"])
    parts = [fitted.predict(controls["c0"], name, features=features[name]) for name in ("p0", "p1")]
    np.testing.assert_allclose(both, np.sum(parts, axis=0))
    np.testing.assert_allclose(fitted.predict(controls["c0"], "p5"), deltas["p5", "c0"])


def test_features_that_say_nothing_give_the_mean_effect():
    controls, deltas, features = _by_features(25, noise=1.0)
    rng = np.random.default_rng(1)
    noise = {name: np.r_[1.0, rng.normal(size=3)] for name in features}
    pure = {key: 1 + rng.normal(size=N_GENES) for key in deltas}
    fitted = LinearEffects.fit(controls, pure, features=noise)
    predicted = fitted.predict(controls["c0"], "new", features=np.r_[1.0, 0.5, -0.5, 0.5])
    mean = np.mean(list(pure.values()), axis=0)
    assert np.abs(predicted - mean).max() < 0.3
    np.testing.assert_allclose(
        LinearEffects.fit(controls, {key: pure[key] for key in list(pure)[:2]}, features=noise).predict(
            controls["c0"], "new", features=np.r_[1.0, 9.0, 9.0, 9.0]
        ),
        np.mean(list(pure.values())[:2], axis=0),
    )


def test_linear_unusable_input_raises():
    controls, deltas, features = _by_features(4)
    with pytest.raises(ValueError, match="needs a training context"):
        LinearEffects.fit(controls, {})
    with pytest.raises(ValueError, match="no control mean of the context 'c0'"):
        LinearEffects.fit({}, deltas)
    with pytest.raises(ValueError, match="no features of 'p3'"):
        LinearEffects.fit(controls, deltas, features={k: v for k, v in features.items() if k != "p3"})
    with pytest.raises(ValueError, match="'p9' is not among the training cells"):
        LinearEffects.fit(controls, deltas).predict(controls["c0"], "p9")
    with pytest.raises(ValueError, match="first feature is 0"):
        LinearEffects.fit(controls, deltas, features={k: v * [0, 1, 1, 1] for k, v in features.items()})
