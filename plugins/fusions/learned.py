"""The weights of the composite reward: learned from clicks, then refined for what clicks do not show."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import track

from openrlhf_qs.registry import FUSIONS
from openrlhf_qs.reward.fusion_data import FusionData
from openrlhf_qs.reward.pareto import knee
from openrlhf_qs.statistics import pair_regression
from openrlhf_qs.statistics.clusters import Clusters
from openrlhf_qs.statistics.intervals import SIGNIFICANT_Z

C_GRID = np.logspace(-4, 2, 13)
N_FOLDS = 5
MIN_SPAN = 0.05  # of an objective, in [0, 1], for the knee
COLLINEAR = 5.0  # variance inflation above which a part's weight cannot be separated from others'


@FUSIONS.register("equal")
class EqualFusion:
    """The baseline: every part gets the same share of the differences among responses to one prompt."""

    def __call__(self, data: FusionData) -> list[float]:
        """Weights that sum to 1, independent of clicks."""
        return equal_shares(data)


@FUSIONS.register("logistic_regression")
class LogisticRegressionFusion:
    """Weights that separate clicked impressions from others: logistic regression, without intercept, on differences.

    The log-odds that the first of two impressions is the clicked one are ``(parts_1 - parts_2) @ weights``, with a
    ridge penalty. Every part is written so that more is better, so a negative weight is noise or a defect of the part:
    it is set to the floor, with a warning. If the log does not determine the weights (no part rises with clicks beyond
    its noise, or only pairs across conversations are left, which include the conversation's effect on clicks), all
    parts get the same share, with a warning. The floor exists because a log of ordinary impressions cannot show what
    protects against responses that no policy has given yet.

    Args:
        floor: share of the largest weight that every part keeps, in [0, 1].
        c: inverse strength of the ridge penalty (scikit-learn's ``C``), on the scaled parts; None chooses it by
            cross-validation over conversations.
    """

    def __init__(self, floor: float = 0.2, c: float | None = None) -> None:
        if not 0 <= floor <= 1:
            raise ValueError(f"logistic_regression.floor must be in [0, 1], got {floor}: it is a share")
        if c is not None and c <= 0:
            raise ValueError(f"logistic_regression.c must be > 0, got {c}")
        self.floor = floor
        self.c = c
        self.report: dict[str, Any] = {}

    def __call__(self, data: FusionData) -> list[float]:
        """Weights that sum to 1; ``report`` has the coefficients with their standard errors."""
        c = self.c or pair_regression.cross_validated_c(
            data.difference, data.weight, data.conversation, C_GRID, N_FOLDS
        )
        weights = pair_regression.fit(data.difference, data.weight, c)
        errors, inflation = standard_errors(data, weights, c), variance_inflation(data.difference)
        reason = _why_not_told(data, weights, errors)
        self.report = {
            "first_stage": {
                "told": not reason,
                "coefficient": dict(zip(data.names, weights.tolist(), strict=True)),
                "standard_error": dict(zip(data.names, errors.tolist(), strict=True)),
                "variance_inflation": dict(zip(data.names, inflation.tolist(), strict=True)),
                "c": float(c),
                "floor": self.floor,
                "n_pairs": len(data.difference),
                "n_conversations": len(np.unique(data.conversation)),
            }
        }
        if reason:
            warnings.warn(
                f"this log does not determine the weights, because {reason}: all parts get the same share, as with "
                "FUSION=equal; more clicks would help",
                stacklevel=2,
            )
            return equal_shares(data)
        for name, weight, error, factor in zip(data.names, weights, errors, inflation, strict=True):
            if weight < 0:
                warnings.warn(
                    f"reward {name!r} has the weight {weight:.3f} (standard error {error:.3f}): clicks fall as it "
                    "rises; it is set to the floor",
                    stacklevel=2,
                )
            if factor > COLLINEAR:
                warnings.warn(
                    f"reward {name!r} can hardly be distinguished from the others (variance inflation {factor:.1f}): "
                    "its weight says little by itself; leave out one that measures the same",
                    stacklevel=2,
                )
        weights = np.maximum(weights, self.floor * weights.max())
        return (weights / weights.sum()).tolist()


def equal_shares(data: FusionData) -> list[float]:
    """The same weight for each part, of 1 in all: parts are in deviations of the samples to one prompt."""
    return [1 / len(data.names)] * len(data.names)


def _why_not_told(data: FusionData, weights: np.ndarray, errors: np.ndarray) -> str:
    if data.other is not None:
        return "its conversations hardly recur, so that pairs differ in the conversation too"
    if not (weights > SIGNIFICANT_Z * errors).any():
        return f"no part rises with clicks beyond its noise in {len(data.difference):,} pairs"
    return ""


def standard_errors(data: FusionData, weights: np.ndarray, c: float) -> np.ndarray:
    """Of the coefficients ``[k]``: the sandwich estimate from the Hessian of the penalised likelihood, with the
    gradients of pairs that share a conversation, or a user, added up before they are squared, for they are not
    independent (:class:`openrlhf_qs.statistics.clusters.Clusters`)."""
    probability = 1 / (1 + np.exp(-data.difference @ weights))
    curvature = data.weight * probability * (1 - probability)
    hessian = (data.difference * curvature[:, None]).T @ data.difference + np.eye(len(weights)) / c
    gradient = data.difference * (data.weight * (1 - probability))[:, None]
    of_both = [] if data.other is None else [data.other]
    clusters = Clusters.of(data.conversation, *of_both, *(data.users or ()))
    inverse = np.linalg.inv(hessian)
    # By coefficient, so that its variance is never below that by conversation alone.
    few = clusters.n_clusters / max(clusters.n_clusters - 1, 1)
    return np.sqrt(few * np.diag(clusters.squares(gradient @ inverse)))


def variance_inflation(difference: np.ndarray) -> np.ndarray:
    """How many times the variance of a coefficient is what it would be alone, ``[k]``: ``1 / (1 - R^2)`` of each part
    on the others. Without an intercept, as the model has none; 1 for a part that never differs."""
    scale = np.sqrt((difference**2).mean(0))
    inflation, used = np.ones(difference.shape[1]), scale > 1e-9
    scaled = difference[:, used] / scale[used]
    correlation = scaled.T @ scaled / len(scaled)
    inflation[used] = np.diag(np.linalg.inv(correlation + 1e-10 * np.eye(len(correlation))))
    return np.maximum(inflation, 1.0)


@FUSIONS.register("pareto")
class ParetoFusion:
    """The weights of ``logistic_regression``, refined for what clicks do not show, on a Pareto front.

    NSGA-II (Optuna's) searches around the first stage's weights. All five objectives are in [0, 1], more is better:
    ``accuracy`` on pairs from conversations, and ``accuracy_out`` on pairs from whole topics, that the first stage did
    not see; ``resistance``, the share of responses that score above all their hacked versions, averaged over the
    hacks; ``diversity`` and ``validity`` of each conversation's best sample by total reward.

    Args:
        choose: the point on the front: ``knee``, of the points within ``slack`` the farthest from the plane through
            the extremes of the scaled objectives (the first stage if none is within it); the name of an objective, for
            the best in it; ``first_stage``.
        slack: how far, in standard errors, the knee may be below the first stage in each objective and in the
            resistance to each hack: no objective may lose more than its noise.
        reach: factor, > 1, by which a weight may differ from that of the first stage, either way.
        n_trials: number of weights that are tried.
        floor: for the first stage, see ``logistic_regression``.
        c: for the first stage, see ``logistic_regression``.
        seed: of the split and the search.
    """

    wants_hacked = True

    def __init__(
        self,
        choose: str = "knee",
        slack: float = 1.0,
        reach: float = 2.0,
        n_trials: int = 1000,
        floor: float = 0.2,
        c: float | None = None,
        seed: int = 0,
    ) -> None:
        if choose not in ("knee", "first_stage", *OBJECTIVES):
            raise ValueError(
                f"pareto.choose = {choose!r} is unknown; known: knee, first_stage, {', '.join(OBJECTIVES)}"
            )
        if reach <= 1 or n_trials < 1 or slack < 0:
            raise ValueError(
                f"pareto: needs reach > 1, n_trials >= 1 and slack >= 0, got {reach}, {n_trials} and {slack}"
            )
        self.choose = choose
        self.slack = slack
        self.reach = reach
        self.n_trials = n_trials
        self.first_stage = LogisticRegressionFusion(floor, c)
        self.seed = seed
        self.report: dict[str, Any] = {}

    def __call__(self, data: FusionData) -> list[float]:
        """Weights that sum to 1; ``report`` has the first stage, the front and the choice."""
        fitted, inside, outside = split(data, self.seed)
        first = np.array(self.first_stage(fitted))
        tried, values, on_front = self.search(first, inside, outside)
        names = list(objectives(first, inside, outside))
        if self.choose != "first_stage" and self.choose != "knee" and self.choose not in names:
            raise ValueError(f"pareto.choose = {self.choose}: these data allow only {', '.join(names)}")
        if self.choose == "first_stage":
            chosen = 0
        elif self.choose == "knee":
            means, errors = means_and_errors(first, inside, outside)
            least = means - self.slack * errors
            within = [row for row in on_front if (means_and_errors(tried[row], inside, outside)[0] >= least).all()]
            within = within or [0]
            chosen = within[knee(values[within], MIN_SPAN)]
        else:
            chosen = on_front[values[on_front, names.index(self.choose)].argmax()]

        def point(row: int) -> dict[str, dict[str, float]]:
            return {
                "weights": dict(zip(data.names, tried[row].round(5).tolist(), strict=True)),
                "objectives": dict(zip(names, values[row].round(5).tolist(), strict=True)),
            }

        self.report = {
            **self.first_stage.report,
            "n_pairs_inside": len(inside.difference),
            "n_pairs_outside": len(outside.difference),
            "start": point(0),
            "chosen": {"rule": self.choose, **point(chosen)},
            "resistance": {
                key: {
                    kind: round(float(values.mean()), 5)
                    for kind, (values, _) in counted(tried[row], inside, outside).get("resistance", {}).items()
                }
                for key, row in (("start", 0), ("chosen", chosen))
            },
            "front": [point(row) for row in on_front],
        }
        return tried[chosen].tolist()

    def search(
        self, first: np.ndarray, inside: FusionData, outside: FusionData
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Weights ``[1 + n_trials, k]``, ``first`` and those that were tried, each adds up to 1; their objectives;
        and the rows that are on the front, those of the study's best trials."""
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        n_objectives = len(objectives(first, inside, outside))
        study = optuna.create_study(
            directions=["maximize"] * n_objectives, sampler=optuna.samplers.NSGAIISampler(seed=self.seed)
        )
        centre = np.maximum(first, 1e-3 * first.max())  # a weight of 0 has no neighbours by a factor
        study.enqueue_trial(dict(zip(inside.names, centre.tolist(), strict=True)))
        tried, values = [], []
        for number in track(range(1 + self.n_trials), "weights tried", console=Console(stderr=True)):
            trial = study.ask()
            weights = np.array(
                [
                    trial.suggest_float(name, one / self.reach, one * self.reach, log=True)
                    for name, one in zip(inside.names, centre, strict=True)
                ]
            )
            tried.append(weights / weights.sum() if number else first)
            values.append(list(objectives(tried[-1], inside, outside).values()))
            study.tell(trial, values[-1])
        return np.array(tried), np.array(values), np.array([trial.number for trial in study.best_trials])


OBJECTIVES = ("accuracy", "accuracy_out", "resistance", "diversity", "validity")


def counted(weights: np.ndarray, inside: FusionData, outside: FusionData) -> dict[str, dict[str, tuple]]:
    """What each objective is the mean of: values in [0, 1] and what each counts, ``[n]`` both, of what the data tell.

    ``resistance`` has them by the kind of hack: is a response's total above that of all that the hack makes of it?
    Every other has one, under its own name.
    """
    found: dict[str, dict[str, tuple]] = {}
    for name, data in (("accuracy", inside), ("accuracy_out", outside)):
        if len(data.difference):
            margin = data.difference @ weights
            found[name] = {name: ((margin > 0) + 0.5 * (margin == 0), data.weight)}
    if inside.clean_minus_hacked:
        found["resistance"] = {
            kind: (((difference @ weights > 0) | inside.stopped[kind]).all(1), np.ones(len(difference)))
            for kind, difference in inside.clean_minus_hacked.items()
        }
    if inside.samples is not None and inside.samples.shape[1] > 1:
        best = np.where(inside.passed, inside.samples @ weights, -np.inf).argmax(1)[:, None]
        for name, values in (("diversity", inside.diversity), ("validity", inside.valid)):
            found[name] = {name: (np.take_along_axis(values, best, 1)[:, 0], np.ones(len(values)))}
    return found


def objectives(weights: np.ndarray, inside: FusionData, outside: FusionData) -> dict[str, float]:
    """By the names in ``OBJECTIVES``, those that the data can tell."""
    return {
        name: float(np.mean([np.average(values, weights=weight) for values, weight in some.values()]))
        for name, some in counted(weights, inside, outside).items()
    }


def means_and_errors(weights: np.ndarray, inside: FusionData, outside: FusionData) -> tuple[np.ndarray, np.ndarray]:
    """The means of all that is counted, each hack apart, and their standard errors."""
    means, errors = [], []
    for some in counted(weights, inside, outside).values():
        for values, weight in some.values():
            means.append(np.average(values, weights=weight))
            variance = np.average((values - means[-1]) ** 2, weights=weight)
            errors.append(np.sqrt(variance * (weight**2).sum()) / weight.sum())
    return np.array(means), np.array(errors)


def split(data: FusionData, seed: int) -> tuple[FusionData, FusionData, FusionData]:
    """Pairs to fit, of other conversations (30 %), and of other topics (a quarter of them, at least one of two)."""
    random = np.random.default_rng(seed)
    topics = random.permutation(np.unique(data.topic))
    outside = np.isin(data.topic, topics[: max(1, len(topics) // 4)] if len(topics) > 1 else [])
    conversations = random.permutation(np.unique(data.conversation[~outside]))
    held_out = np.isin(data.conversation, conversations[: int(0.3 * len(conversations))])
    parts = [~outside & ~held_out, ~outside & held_out, outside]
    if not parts[0].any() or not parts[1].any():
        raise ValueError(
            f"pareto needs pairs of more conversations, found {len(np.unique(data.conversation))}: give a larger log, "
            "or FUSION=logistic_regression"
        )
    return tuple(data.pairs(rows) for rows in parts)
