"""Rates against PyTorch's schedulers, step by step."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from inception_jax.errors import UserError
from inception_jax.steps.schedules import SCHEDULES, cycle_ends, init_plateau, make_schedule, plateau_update

STEPS_PER_EPOCH = 5
NUM_EPOCHS = 10
STEPS = STEPS_PER_EPOCH * NUM_EPOCHS
RATE = 0.3


def rates(name, **options):
    schedule = make_schedule(
        name, learning_rate=RATE, steps_per_epoch=STEPS_PER_EPOCH, num_epochs=NUM_EPOCHS, **options
    )
    return np.asarray(schedule(jnp.arange(STEPS)), np.float64)


def torch_rates(make_scheduler):
    torch = pytest.importorskip("torch", reason="PyTorch is in the extra 'peers'")
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=RATE)
    scheduler = make_scheduler(torch.optim.lr_scheduler, optimizer)
    sequence = []
    for _ in range(STEPS):
        sequence.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return np.array(sequence)


@pytest.mark.parametrize(
    ("name", "options", "make_scheduler"),
    [
        ("constant", {}, lambda torch, optimizer: torch.ConstantLR(optimizer, factor=1.0)),
        ("plateau", {}, lambda torch, optimizer: torch.ConstantLR(optimizer, factor=1.0)),
        (
            "step",  # "4 % less every 8 epochs"
            {"every_epochs": 8, "factor": 0.96},
            lambda torch, optimizer: torch.StepLR(optimizer, 8 * STEPS_PER_EPOCH, 0.96),
        ),
        (
            "step",
            {"every_epochs": 0.6, "factor": 0.7},
            lambda torch, optimizer: torch.StepLR(optimizer, 3, 0.7),
        ),
        (
            "step",
            {"boundaries": (6, 2), "factor": 0.1},
            lambda torch, optimizer: torch.MultiStepLR(optimizer, [2 * STEPS_PER_EPOCH, 6 * STEPS_PER_EPOCH], 0.1),
        ),
        ("cosine", {}, lambda torch, optimizer: torch.CosineAnnealingLR(optimizer, STEPS)),
        (
            "cosine",
            {"final_rate": 0.01},
            lambda torch, optimizer: torch.CosineAnnealingLR(optimizer, STEPS, eta_min=0.01),
        ),
        (
            "inverse_time",
            {"decay_rate": 0.02},
            lambda torch, optimizer: torch.LambdaLR(optimizer, lambda step: 1 / (1 + 0.02 * step)),
        ),
    ],
)
@pytest.mark.parametrize("x64", [False, True])
def test_rates_equal_torch(name, options, make_scheduler, x64):
    expected = torch_rates(make_scheduler)
    with jax.enable_x64(x64):
        assert make_schedule(
            name, learning_rate=RATE, steps_per_epoch=STEPS_PER_EPOCH, num_epochs=NUM_EPOCHS, **options
        )(jnp.asarray(3)).dtype == (jnp.float64 if x64 else jnp.float32)
        np.testing.assert_allclose(rates(name, **options), expected, rtol=1e-12 if x64 else 1e-6)


@pytest.mark.parametrize("warmup_epochs", [0.2, 1, 2.4])
def test_cosine_after_warm_up_equals_torch(warmup_epochs):
    warmup_steps = round(warmup_epochs * STEPS_PER_EPOCH)

    def scheduler(torch, optimizer):
        warmup = torch.LinearLR(optimizer, start_factor=1 / warmup_steps, total_iters=warmup_steps - 1)
        cosine = torch.CosineAnnealingLR(optimizer, STEPS - warmup_steps, eta_min=0.01)
        return torch.SequentialLR(optimizer, [warmup, cosine], milestones=[warmup_steps])

    # LinearLR cannot take a single step; that warm-up is one update at the full rate.
    expected = torch_rates(scheduler if warmup_steps > 1 else cosine_after_one_step)
    np.testing.assert_allclose(rates("cosine", final_rate=0.01, warmup_epochs=warmup_epochs), expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("cycles", "factor", "num_epochs", "ends"), [(5, 1, 10, [10, 20, 30, 40, 50]), (3, 2, 7, [5, 15, 35])]
)
def test_cosine_with_cycles_equals_torch(cycles, factor, num_epochs, ends):
    schedule = make_schedule(
        "cosine",
        learning_rate=RATE,
        steps_per_epoch=STEPS_PER_EPOCH,
        num_epochs=num_epochs,
        final_rate=0.01,
        cycles=cycles,
        cycle_factor=factor,
    )
    assert cycle_ends(num_epochs, STEPS_PER_EPOCH, cycles, factor) == tuple(ends)
    expected = torch_rates(
        lambda torch, optimizer: torch.CosineAnnealingWarmRestarts(optimizer, ends[0], factor, eta_min=0.01)
    )
    np.testing.assert_allclose(schedule(jnp.arange(ends[-1])), expected[: ends[-1]], rtol=1e-6)


def test_a_warm_up_is_part_of_the_first_cycle():
    warm = rates("cosine", cycles=5, warmup_epochs=1)
    np.testing.assert_allclose(warm[:5], RATE * np.arange(1, 6) / 5, rtol=1e-6)
    np.testing.assert_allclose(warm[5:10], RATE * (1 + np.cos(np.pi * np.arange(5) / 5)) / 2, rtol=1e-6)
    np.testing.assert_array_equal(warm[10:], rates("cosine", cycles=5)[10:])


def test_a_cycle_ends_at_the_same_step_however_many_follow():
    assert cycle_ends(3, 21, 2) == cycle_ends(6, 21, 4)[:2] == (32, 63)
    assert cycle_ends(1, 1000, 3, 0.1) == (901, 991, 1000)
    assert cycle_ends(63, 1, 6, 2.0) == (1, 3, 7, 15, 31, 63)


def cosine_after_one_step(torch, optimizer):
    constant = torch.ConstantLR(optimizer, factor=1.0)
    cosine = torch.CosineAnnealingLR(optimizer, STEPS - 1, eta_min=0.01)
    return torch.SequentialLR(optimizer, [constant, cosine], milestones=[1])


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("constant", {}),
        ("step", {"boundaries": (1, 4)}),
        ("step", {"every_epochs": 3}),
        ("inverse_time", {"decay_rate": 0.1}),
    ],
)
def test_other_schedules_keep_the_runs_clock_under_warm_up(name, options):
    warm = rates(name, warmup_epochs=2, **options)
    np.testing.assert_allclose(warm[:10], RATE * np.arange(1, 11) / 10, rtol=1e-6)
    np.testing.assert_array_equal(warm[10:], rates(name, **options)[10:])


def test_step_boundaries_within_an_epoch_fall_on_their_step():
    # 3 * 0.1 is a little more than 0.3 in binary; the third reduction is at step 3 all the same.
    schedule = make_schedule("step", learning_rate=1.0, steps_per_epoch=10, num_epochs=2, every_epochs=0.1, factor=0.5)
    np.testing.assert_array_equal(schedule(jnp.arange(20)), 0.5 ** np.arange(20))


def test_a_warm_up_longer_than_the_run_is_all_there_is():
    np.testing.assert_allclose(
        rates("cosine", warmup_epochs=20), RATE * np.arange(1, STEPS + 1) / (20 * STEPS_PER_EPOCH), rtol=1e-6
    )


def test_schedules_can_be_jitted():
    for name in SCHEDULES:
        schedule = make_schedule(name, learning_rate=RATE, steps_per_epoch=5, num_epochs=10, warmup_epochs=1)
        np.testing.assert_allclose(jax.jit(schedule)(jnp.asarray(40)), schedule(40), rtol=1e-6)


def test_mistakes_are_named():
    with pytest.raises(UserError, match=r"unknown schedule 'cosin'. Did you mean 'cosine'\?"):
        rates("cosin")
    with pytest.raises(UserError, match="shorter than a step"):
        rates("step", every_epochs=0.1)
    for cycles, factor in ((STEPS + 1, 1.0), (2**31 - 1, 1.0), (20, 2.0), (20, 0.5), (1000, 1e30)):
        with pytest.raises(UserError, match=f"cycles={cycles} is not allowed .* shorter than a step, of which the run"):
            rates("cosine", cycles=cycles, cycle_factor=factor)
    with pytest.raises(UserError, match="unknown mode 'best'"):
        init_plateau("best")
    with pytest.raises(UserError, match="unknown threshold mode 'rel'"):
        plateau_update(init_plateau("max"), 1.0, **plateau_options(threshold_mode="rel"))


def plateau_options(**options):
    defaults = {
        "mode": "min", "factor": 0.5, "patience": 2, "threshold": 1e-4, "threshold_mode": "relative",
        "cooldown": 0, "min_scale": 0.0, "learning_rate": RATE,
    }  # fmt: skip
    return defaults | options


jitted_plateau_update = jax.jit(plateau_update, static_argnames=tuple(plateau_options()))


def plateau_scales(metrics, state=None, **options):
    options = plateau_options(**options)
    state = init_plateau(options["mode"]) if state is None else state
    scales = []
    for metric in metrics:
        state = jitted_plateau_update(state, metric, **options)
        scales.append(float(state.scale))
    return np.array(scales), state


def torch_plateau_scales(metrics, **options):
    torch = pytest.importorskip("torch", reason="PyTorch is in the extra 'peers'")
    options = plateau_options(**options)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=RATE)
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(
        optimizer, options["mode"], options["factor"], options["patience"], options["threshold"],
        {"relative": "rel", "absolute": "abs"}[options["threshold_mode"]], options["cooldown"],
        options["min_scale"] * RATE,
    )  # fmt: skip
    scales = []
    for metric in metrics:
        scheduler.step(metric)
        scales.append(optimizer.param_groups[0]["lr"] / RATE)
    return np.array(scales)


def noisy_metrics(seed, length=80):
    """A metric that improves at first, then wanders, with values that are no numbers among them."""
    generator = np.random.default_rng(seed)
    metrics = np.exp(-np.arange(length) / 10) + 0.2 * generator.standard_normal(length)
    metrics[generator.random(length) < 0.05] = math.nan
    return metrics


@pytest.mark.parametrize("mode", ["min", "max"])
@pytest.mark.parametrize("threshold_mode", ["relative", "absolute"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"patience": 0, "cooldown": 3, "threshold": 0.05},
        {"patience": 1, "cooldown": 1, "factor": 0.1, "min_scale": 3e-3},
        {"patience": 0, "factor": 0.01},  # far enough for changes that PyTorch holds to be too small
    ],
)
def test_plateau_equals_torch(mode, threshold_mode, options):
    for seed in range(5):
        metrics = noisy_metrics(seed) * (1 if mode == "min" else -1)
        options = {"mode": mode, "threshold_mode": threshold_mode, **options}
        scales, _ = plateau_scales(metrics, **options)
        assert len(set(scales)) > 2
        np.testing.assert_allclose(scales, torch_plateau_scales(metrics, **options), rtol=1e-6)


@pytest.mark.parametrize("split", [1, 7, 40])
def test_plateau_goes_on_from_its_state_alone(split):
    metrics = noisy_metrics(1)
    options = {"cooldown": 2, "patience": 1}
    first, state = plateau_scales(metrics[:split], **options)
    state = jax.tree.map(jnp.asarray, jax.tree.map(np.asarray, state))
    second, _ = plateau_scales(metrics[split:], state, **options)
    np.testing.assert_allclose(np.concatenate([first, second]), torch_plateau_scales(metrics, **options), rtol=1e-6)


def test_no_reduction_while_patience_lasts():
    scales, state = plateau_scales([1.0, 1.0, 1.0, 1.0], patience=2)
    np.testing.assert_array_equal(scales, [1, 1, 1, 0.5])
    assert int(state.bad_epochs) == 0
    assert float(state.best) == 1.0
