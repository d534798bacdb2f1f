"""The identities and inequalities of information theory, on distributions made to break them."""

import math

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.reference import information as reference
from workers.information.binning import bin_codes, count_codes, equal_mass_edges
from workers.information.crossentropy import (
    binary_cross_entropy_from_logits,
    cross_entropy,
    cross_entropy_from_logits,
    smoothed_targets,
)
from workers.information.divergence import (
    bernoulli_kl_from_logits,
    generalised_jensen_shannon,
    jensen_shannon,
    jensen_shannon_from_logits,
    kl_divergence,
    kl_divergence_from_logits,
    reverse_kl_divergence,
)
from workers.information.entropy import (
    bernoulli_entropy_from_logits,
    conditional_entropy,
    entropy,
    entropy_from_logits,
    joint_entropy,
    marginal,
    marginal_entropy,
)
from workers.information.estimators import estimate_entropy, estimate_mutual_information
from workers.information.gaussian import (
    gaussian_entropy,
    gaussian_kl_per_dimension,
    gaussian_negative_log_likelihood,
)
from workers.information.mutual import (
    entropy_of_mean_prediction,
    mutual_information,
    predictive_entropy,
    predictive_information,
)

SIZES = st.one_of(st.integers(1, 12), st.sampled_from([100, 500]))
SEEDS = st.integers(0, 2**31)
#: No deadline: the machine is shared, and a slow example is no wrong one.
measured = settings(max_examples=50, deadline=None)
TOLERANCE = 1e-10
FLOAT32_TOLERANCE = 2e-5


def one_hot(size: int, generator: torch.Generator) -> Tensor:
    p = torch.zeros(size, dtype=torch.float64)
    p[int(torch.randint(size, (), generator=generator))] = 1
    return p


def uniform(size: int, generator: torch.Generator) -> Tensor:
    return torch.full((size,), 1 / size, dtype=torch.float64)


def near_zero(size: int, generator: torch.Generator) -> Tensor:
    """One class has all but what powers down to 10⁻³⁰⁰ leave."""
    exponents = -300 * torch.rand(size, generator=generator, dtype=torch.float64)
    p = 10**exponents
    p[0] = 1
    return p / p.sum()


def sparse(size: int, generator: torch.Generator) -> Tensor:
    p = torch.rand(size, generator=generator, dtype=torch.float64)
    p = p * (torch.rand(size, generator=generator) < 0.3)
    p[int(torch.randint(size, (), generator=generator))] += 0.1
    return p / p.sum()


def ordinary(size: int, generator: torch.Generator) -> Tensor:
    return torch.softmax(3 * torch.randn(size, generator=generator, dtype=torch.float64), -1)


SHAPES = st.sampled_from([one_hot, uniform, near_zero, sparse, ordinary])


@st.composite
def pairs(draw: st.DrawFn, count: int = 2) -> list[Tensor]:
    """Distributions over the same classes, each of its own kind; now and then all of them equal."""
    size = draw(SIZES)
    generator = torch.Generator().manual_seed(draw(SEEDS))
    made = [draw(SHAPES)(size, generator) for _ in range(count)]
    return [made[0]] * count if draw(st.integers(0, 9)) == 0 else made


@st.composite
def joints(draw: st.DrawFn) -> Tensor:
    """Joint tables (|X|, |Y|): of any shape, of independent variables, or of one that the other fixes."""
    rows, columns = draw(st.integers(1, 8)), draw(st.integers(1, 8))
    generator = torch.Generator().manual_seed(draw(SEEDS))
    p_x, p_y = draw(SHAPES)(rows, generator), draw(SHAPES)(columns, generator)
    kind = draw(st.sampled_from(["any", "independent", "function"]))
    if kind == "independent":
        return p_x[:, None] * p_y
    if kind == "function":
        image = torch.randint(columns, (rows,), generator=generator)
        return p_x[:, None] * torch.nn.functional.one_hot(image, columns)
    table: Tensor = draw(SHAPES)(rows * columns, generator).view(rows, columns)
    return table


@st.composite
def logit_pairs(draw: st.DrawFn, count: int = 2) -> list[Tensor]:
    """Float32 logits whose softmax may underflow in most classes, some of them nearly equal."""
    size = draw(SIZES)
    generator = torch.Generator().manual_seed(draw(SEEDS))
    scales = st.sampled_from([0.0, 1e-6, 1.0, 30.0, 1e4])
    first = draw(scales) * torch.randn(size, generator=generator)
    return [first] + [first + draw(scales) * torch.randn(size, generator=generator) for _ in range(count - 1)]


@measured
@given(pairs())
def test_entropy_lies_between_zero_and_the_logarithm_of_the_number_of_classes(pair: list[Tensor]) -> None:
    for p in pair:
        assert 0 <= float(entropy(p)) <= math.log(len(p)) + TOLERANCE
        assert float(entropy(p)) == pytest.approx(reference.entropy(p.tolist()), abs=TOLERANCE)


@measured
@given(pairs())
def test_gibbs_no_distribution_is_less_than_nothing_away_and_only_itself_is_nothing_away(
    pair: list[Tensor],
) -> None:
    p, q = pair
    divergence = float(kl_divergence(p, q))
    assert divergence >= 0
    assert float(kl_divergence(p, p)) == 0
    if divergence == 0:
        torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-7)
    assert divergence == pytest.approx(reference.kl(p.tolist(), q.tolist()), abs=TOLERANCE)
    assert float(reverse_kl_divergence(q, p)) == divergence


@measured
@given(pairs())
def test_pinsker_what_is_far_in_total_variation_is_far_in_divergence(pair: list[Tensor]) -> None:
    p, q = pair
    assert float(kl_divergence(p, q)) >= 0.5 * float((p - q).abs().sum()) ** 2 - TOLERANCE


@measured
@given(pairs())
def test_cross_entropy_is_entropy_and_divergence(pair: list[Tensor]) -> None:
    p, q = pair
    assert float(cross_entropy(p, q)) == pytest.approx(float(entropy(p)) + float(kl_divergence(p, q)), abs=TOLERANCE)


@measured
@given(pairs(3))
def test_jensen_shannon_is_symmetric_bounded_and_the_square_of_a_metric(three: list[Tensor]) -> None:
    p, q, r = three
    assert float(jensen_shannon(p, q)) == pytest.approx(float(jensen_shannon(q, p)), abs=TOLERANCE)
    assert 0 <= float(jensen_shannon(p, q)) <= math.log(2) + TOLERANCE
    assert float(jensen_shannon(p, p)) == pytest.approx(0, abs=1e-15)
    direct = math.sqrt(float(jensen_shannon(p, r)))
    detour = math.sqrt(float(jensen_shannon(p, q))) + math.sqrt(float(jensen_shannon(q, r)))
    assert direct <= detour + 1e-7


@measured
@given(pairs(), st.floats(0.001, 0.999))
def test_generalised_jensen_shannon_is_bounded_by_the_entropy_of_its_coin(pair: list[Tensor], beta: float) -> None:
    p, q = pair
    value = float(generalised_jensen_shannon(p, q, beta=beta))
    assert 0 <= value <= reference.entropy([beta, 1 - beta]) + TOLERANCE
    exchanged = float(generalised_jensen_shannon(q, p, beta=1 - beta))
    assert value == pytest.approx(exchanged, abs=TOLERANCE)
    mixture = beta * p + (1 - beta) * q
    by_entropies = entropy(mixture) - beta * entropy(p) - (1 - beta) * entropy(q)
    assert value == pytest.approx(float(by_entropies), abs=TOLERANCE)


@measured
@given(joints())
def test_chain_rule(joint: Tensor) -> None:
    both = float(joint_entropy(joint))
    for given_variable in ("x", "y"):
        assert both == pytest.approx(
            float(marginal_entropy(joint, of=given_variable)) + float(conditional_entropy(joint, given=given_variable)),
            abs=TOLERANCE,
        )


@measured
@given(joints())
def test_conditioning_reduces_entropy_and_never_below_zero(joint: Tensor) -> None:
    assert 0 <= float(conditional_entropy(joint)) <= float(marginal_entropy(joint, of="y")) + TOLERANCE


@measured
@given(joints())
def test_mutual_information_is_symmetric_never_negative_and_at_most_either_entropy(joint: Tensor) -> None:
    information = float(mutual_information(joint))
    assert information >= 0
    assert information == pytest.approx(float(mutual_information(joint.T)), abs=TOLERANCE)
    smaller = min(float(marginal_entropy(joint, of="x")), float(marginal_entropy(joint, of="y")))
    assert information <= smaller + TOLERANCE
    assert information == pytest.approx(reference.mutual_information(joint.tolist()), abs=TOLERANCE)


@measured
@given(joints())
def test_the_three_forms_of_mutual_information_agree(joint: Tensor) -> None:
    information = float(mutual_information(joint))
    assert float(mutual_information(joint, form="conditional")) == pytest.approx(information, abs=TOLERANCE)
    assert float(mutual_information(joint, form="entropies")) == pytest.approx(information, abs=TOLERANCE)


@measured
@given(pairs(1))
def test_a_variable_tells_exactly_its_entropy_about_itself(single: list[Tensor]) -> None:
    (p,) = single
    assert float(mutual_information(torch.diag(p))) == pytest.approx(float(entropy(p)), abs=TOLERANCE)


@measured
@given(joints(), st.integers(1, 6), SEEDS)
def test_data_processing_no_channel_adds_information(joint: Tensor, outputs: int, seed: int) -> None:
    """X → Y → Z: whatever is computed from Y, by chance or not, tells no more about X than Y does."""
    generator = torch.Generator().manual_seed(seed)
    channel = torch.stack([sparse(outputs, generator) for _ in range(joint.shape[1])])
    processed = joint @ channel
    assert float(mutual_information(processed)) <= float(mutual_information(joint)) + TOLERANCE


@measured
@given(pairs(), st.integers(1, 6), SEEDS)
def test_data_processing_no_channel_separates_distributions(pair: list[Tensor], outputs: int, seed: int) -> None:
    p, q = pair
    generator = torch.Generator().manual_seed(seed)
    channel = torch.stack([ordinary(outputs, generator) for _ in range(len(p))])
    before, after = float(kl_divergence(p, q)), float(kl_divergence(p @ channel, q @ channel))
    assert after <= before + TOLERANCE


@measured
@given(joints())
def test_mutual_information_is_the_divergence_from_independence(joint: Tensor) -> None:
    product = marginal(joint, of="x")[:, None] * marginal(joint, of="y")
    assume(bool((product[joint > 0] > 0).all()))  # two tiny marginals may have a product of 0
    assert float(mutual_information(joint)) == pytest.approx(
        float(kl_divergence(joint.flatten(), product.flatten())), abs=TOLERANCE
    )


@measured
@given(pairs(), st.sampled_from([2.0, math.e, 10.0]))
def test_a_base_changes_the_unit_and_nothing_else(pair: list[Tensor], base: float) -> None:
    p, q = pair
    for nats, units in [
        (entropy(p), entropy(p, base=base)),
        (jensen_shannon(p, q), jensen_shannon(p, q, base=base)),
        (kl_divergence(p, q), kl_divergence(p, q, base=base)),
    ]:
        assert float(units) * math.log(base) == pytest.approx(float(nats))


@measured
@given(logit_pairs())
def test_from_logits_every_measure_is_finite_and_has_its_sign_in_float32_and_bfloat16(
    pair: list[Tensor],
) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        a, b = (z.to(dtype, copy=True).requires_grad_() for z in pair)
        values = [
            entropy_from_logits(a),
            kl_divergence_from_logits(a, b),
            kl_divergence_from_logits(b, a),
            jensen_shannon_from_logits(a, b),
            cross_entropy_from_logits(a, torch.tensor(0), label_smoothing=0.1),
            cross_entropy_from_logits(b, torch.softmax(a, -1)),
            bernoulli_kl_from_logits(a, b).sum(),
            bernoulli_entropy_from_logits(a).sum(),
            binary_cross_entropy_from_logits(a, torch.sigmoid(b)).sum(),
            predictive_information(torch.stack([a, b])),
        ]
        gradients = torch.autograd.grad(torch.stack(values).sum(), (a, b))
        for value in values:
            assert value.dtype == torch.float32
            assert 0 <= float(value.detach()) < math.inf
        assert all(bool(torch.isfinite(gradient).all()) for gradient in gradients)


@measured
@given(logit_pairs())
def test_from_logits_and_from_probabilities_agree(pair: list[Tensor]) -> None:
    a, b = (z.double() for z in pair)
    p, q = torch.softmax(a, -1), torch.softmax(b, -1)
    assert float(entropy_from_logits(a)) == pytest.approx(float(entropy(p)), abs=TOLERANCE)
    assert float(jensen_shannon_from_logits(a, b)) == pytest.approx(float(jensen_shannon(p, q)), abs=TOLERANCE)
    if bool((q > 1e-300).all()):  # below, a probability has lost what its logit still knows
        assert float(kl_divergence_from_logits(a, b)) == pytest.approx(float(kl_divergence(p, q)), abs=TOLERANCE)


@measured
@given(logit_pairs())
def test_adding_a_constant_to_logits_changes_nothing(pair: list[Tensor]) -> None:
    a, b = (z.double() for z in pair)
    assert float(kl_divergence_from_logits(a + 7, b - 3)) == pytest.approx(
        float(kl_divergence_from_logits(a, b)), rel=1e-6, abs=1e-9
    )


@settings(max_examples=10, deadline=None)
@given(SEEDS, SHAPES, SHAPES)
def test_a_hundred_thousand_classes_in_float32_keep_signs_and_identities(seed: int, first: type, second: type) -> None:
    generator = torch.Generator().manual_seed(seed)
    p, q = (shape(100_000, generator) for shape in (first, second))
    narrow_p, narrow_q = p.float(), q.float()
    assert float(entropy(narrow_p)) == pytest.approx(float(entropy(p)), rel=1e-4, abs=FLOAT32_TOLERANCE)
    assert float(kl_divergence(narrow_p, narrow_q)) >= 0
    divergence = float(jensen_shannon(narrow_p, narrow_q))
    assert divergence == pytest.approx(float(jensen_shannon(p, q)), rel=1e-4, abs=FLOAT32_TOLERANCE)
    assert 0 <= divergence <= math.log(2) + FLOAT32_TOLERANCE


@measured
@given(st.integers(2, 50), st.floats(0, 1), SEEDS)
def test_smoothed_targets_are_distributions_that_give_every_class_its_share(
    num_classes: int, smoothing: float, seed: int
) -> None:
    target = torch.randint(num_classes, (4,), generator=torch.Generator().manual_seed(seed))
    q = smoothed_targets(target, num_classes, smoothing, dtype=torch.float64)
    assert q.sum(-1).tolist() == pytest.approx([1.0] * 4)
    assert float(q.min()) == pytest.approx(smoothing / num_classes, abs=1e-12)


MEANS = st.floats(-1e3, 1e3)
LOG_VARIANCES = st.floats(-30, 30)


@measured
@given(MEANS, LOG_VARIANCES, MEANS, LOG_VARIANCES)
def test_gaussian_divergence_is_never_negative_and_closes_the_cross_entropy(
    mean_p: float, log_var_p: float, mean_q: float, log_var_q: float
) -> None:
    m, v, n, w = (torch.tensor([x], dtype=torch.float64) for x in (mean_p, log_var_p, mean_q, log_var_q))
    divergence = float(gaussian_kl_per_dimension(m, v, n, w))
    assert divergence >= 0
    assert float(gaussian_kl_per_dimension(m, v, m, v)) == 0
    # E[−log q] under p is the likelihood at the mean plus half the ratio of variances.
    expected = float(gaussian_negative_log_likelihood(m, n, w)) + 0.5 * math.exp(log_var_p - log_var_q)
    assert float(gaussian_entropy(v)) + divergence == pytest.approx(expected, rel=1e-9, abs=1e-9)


@measured
@given(st.integers(1, 40), st.integers(2, 20), st.sampled_from([0.1, 1.0, 30.0, 1000.0]), SEEDS)
def test_claimed_information_is_the_drop_from_marginal_to_predictive_entropy(
    num_rows: int, num_classes: int, scale: float, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn(num_rows, num_classes, generator=generator)
    information = float(predictive_information(logits))
    drop = float(entropy_of_mean_prediction(logits)) - float(predictive_entropy(logits))
    assert information == pytest.approx(drop, abs=FLOAT32_TOLERANCE)
    assert 0 <= information <= math.log(min(num_rows, num_classes)) + FLOAT32_TOLERANCE


@measured
@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=60))
def test_estimates_from_counts_follow_their_formulas(symbols: list[tuple[int, int]]) -> None:
    table = torch.zeros(5, 5, dtype=torch.int64)
    for x, y in symbols:
        table[x, y] += 1
    xs, ys = zip(*symbols, strict=True)
    assert estimate_entropy(table.sum(1)).value == pytest.approx(reference.miller_madow_entropy(xs), abs=TOLERANCE)
    corrected = estimate_mutual_information(table)
    plug_in = estimate_mutual_information(table, estimator="plug_in")
    assert corrected.value == pytest.approx(reference.miller_madow_mutual_information(xs, ys), abs=TOLERANCE)
    assert plug_in.value >= 0
    assert corrected.value == pytest.approx(plug_in.value - plug_in.bias, abs=TOLERANCE)


@measured
@given(st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=80), st.integers(2, 12))
def test_equal_mass_bins_keep_order_and_every_value(values: list[float], num_bins: int) -> None:
    column = torch.tensor(values)[:, None]
    codes = bin_codes(column, equal_mass_edges(column, num_bins))
    assert codes[:, 0].tolist() == [
        reference.equal_mass_code(v, column[:, 0].tolist(), num_bins) for v in column[:, 0].tolist()
    ]
    assert bool((codes[column[:, 0].argsort(), 0].diff() >= 0).all())
    counts = count_codes(codes, num_bins)[0]
    assert int(counts.sum()) == len(values)
    if len(set(values)) == len(values):
        assert int(counts.max() - counts.min()) <= 1
