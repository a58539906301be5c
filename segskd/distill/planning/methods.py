"""Methods: functions from a setting (stages, epochs, teachers) to a list of phases, and nothing else.

A function becomes a method by `@method`. Its name is the method's name, and the first sentence of its docstring is
what people read about it. Its keyword arguments are the method's options. Their annotations say which values are
allowed and what they mean. Nothing else in the program lists methods.

Every method gets the same total of image passes: epochs a stage times stages. A phase that trains several stages at
once therefore has, as a rule, the epochs of one stage times their number.
"""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, get_type_hints

from pydantic import Field
from torch import Tensor

from segskd.config import named
from segskd.distill.planning.losses import attention_loss, channelwise_loss, flow_loss, soft_loss
from segskd.distill.planning.phase import Comparison, Phase, Setting
from segskd.errors import UserError
from segskd.evaluate.metrics import logits_of
from segskd.models.stages import HEAD

Finite = Annotated[float, Field(allow_inf_nan=False)]
Positive = Annotated[Finite, Field(gt=0)]
Share = Annotated[Finite, Field(ge=0, le=1)]
Joint = Annotated[
    Share,
    Field(description="share of the epochs at the end in which all stages train together, on features and labels"),
]
Soft = Annotated[Share, Field(description="weight of the teacher's logits, where labels have the rest")]
Temperature = Annotated[Positive, Field(description="divides values before their softmax: a high one evens them out")]
Weight = Annotated[
    Positive, Field(description="weight of the loss on features, where the rest of the loss has weight 1")
]
FeatureWeight = Annotated[
    Finite, Field(ge=0, description="weight of the features when all stages train together, which fades to 0")
]
Alpha = Annotated[Finite, Field(description="how much more a feature counts than the one before, 0: all alike")]
Deception = Annotated[Positive, Field(description="weight of deceiving the discriminator")]
Method = Callable[..., list[Phase]]
METHODS: dict[str, Method] = {}
"""All methods by name, in the order in which they are written below."""
SNAPSHOT_METHODS: set[str] = set()
"""Names of the methods that also learn from snapshots of the teacher's training."""
JOINT_SHARE = 0.2
"""Share of the epochs of `blockwise` in which the assembled network trains as a whole."""
EARLY_STAGES = 3
"""How many encoder stages `dearkd` counts as early."""


@dataclass(frozen=True)
class Option:
    """An option of a method: its default, and what it means."""

    default: float
    meaning: str


def method(function: Method) -> Method:
    """Makes a function a method."""
    METHODS[function.__name__] = function
    return function


def from_snapshots(function: Method) -> Method:
    """Says of a method that its setting also names snapshots of the teacher's training."""
    SNAPSHOT_METHODS.add(function.__name__)
    return function


def method_names() -> str:
    """The names of all methods in a sentence: "stagewise, simultaneous … or multi_teacher_gan"."""
    *others, last = METHODS
    return f"{', '.join(others)} or {last}"


def summary_of(name: str) -> str:
    """What the method called `name` does, in one sentence."""
    return (inspect.getdoc(METHODS[name]) or name).splitlines()[0]


def options_of(name: str) -> dict[str, Option]:
    """The options of the method called `name`, by their names."""
    hints = get_type_hints(METHODS[name], include_extras=True)
    parameters = inspect.signature(METHODS[name]).parameters.values()
    return {p.name: Option(p.default, _meaning(hints[p.name])) for p in parameters if p.default is not p.empty}


def _meaning(hint: Any) -> str:
    """The last description in an annotation."""
    return next((part.description for part in reversed(hint.__metadata__) if part.description), "")


@method
def stagewise(to: Setting, *, joint: Joint = 0.0) -> list[Phase]:
    """SKD (arXiv 1911.06786): each stage on the teacher's feature alone, then the head on labels.

    Stage k lowers mean((S_k - T_k)^2) while the stages before it are frozen; the head lowers the cross-entropy. A
    stage without a partner in the teacher trains together with the next stage that has one. `joint`, which is not in
    the paper, is the share of all epochs that a last phase gets: there the whole network trains on the loss of
    `simultaneous`. Raises UserError where a stage would be left without an epoch.
    """
    together = _together(to, joint)
    stages = _stage_by_stage(to, _total(to) - together)
    return [*stages, _joint("joint", to, together)] if joint else stages


@method
def stagewise_finetuned(
    to: Setting, *, joint: Joint = 0.05, soft: Soft = 0.5, features: FeatureWeight = 1.0
) -> list[Phase]:
    """SKD's stages (arXiv 1911.06786), then all of them together on labels, the teacher's answers and its features.

    The stages are those of `stagewise`, but where there are labels the head lowers
    L = (1 - soft) * cross-entropy + soft * KL(teacher || student). Then all stages lower
    L + features * w * mean over k of mean((S_k - T_k)^2), where w falls from 1 to 0, on new views in every epoch.
    Where a stage has a single epoch, none is left for all of them together.
    """
    joint = joint if to.epochs > 1 else 0.0
    together = _together(to, joint)
    stages = _stage_by_stage(to, _total(to) - together, soft)
    if not joint:
        return stages
    weight = features / len(to.blocks)
    compared = [Comparison((name,), weight, fades=True) for name in to.blocks] if features else []
    compared += [soft_labels(soft)] if soft else []
    return [*stages, Phase("joint", to.stages, together, tuple(compared), labels=1.0 - soft, fresh=True)]


@method
def simultaneous(to: Setting) -> list[Phase]:
    """SKD's baseline (arXiv 1911.06786): all features and the labels at once, the mean of their losses.

    (sum over k of mean((S_k - T_k)^2) + cross-entropy) / (features + 1).
    """
    return [_joint("simultaneous", to, _total(to))]


@method
def fitnets(to: Setting) -> list[Phase]:
    """FitNets (arXiv 1412.6550) in the SKD paper's form: a hint from the encoder, one from the decoder, then labels.

    A hint is eq. (3), the squared distance of the guided layer from the hint layer, as a mean; a regressor (our
    adapter) stands between where their shapes differ.
    """
    middles = [place for place in (_middle(to, "encoder"), _middle(to, "decoder")) if place]
    ends = [*middles, len(to.stages)]
    parts = [to.stages[begin:end] for begin, end in zip([0, *ends], ends, strict=False)]
    hints = [Phase(f"to-{part[-1]}", part, to.epochs * len(part), (Comparison((part[-1],)),)) for part in parts[:-1]]
    return [*hints, Phase("rest", parts[-1], to.epochs * len(parts[-1]), labels=1.0)]


@method
def hinton(to: Setting, *, temperature: Temperature = 4.0, soft: Soft = 0.9) -> list[Phase]:
    """Soft labels (arXiv 1503.02531, section 2): every pixel's logits at a temperature, and labels.

    soft * T^2 KL(teacher || student) + (1 - soft) * cross-entropy.
    """
    return [_whole("hinton", to, (_soft_logits(temperature, soft),), labels=1.0 - soft)]


@method
def supervised(to: Setting) -> list[Phase]:
    """No teacher: every stage on labels, for as many image passes as `stagewise` gives to all its phases."""
    return [_whole("supervised", to, labels=1.0)]


@method
def blockwise(to: Setting) -> list[Phase]:
    """Parallel blockwise distillation (Blakeney et al., arXiv 2012.03096): each stage by itself, then all together.

    Block k lowers mean((S_k(T_(k-1)) - T_k)^2) on the teacher's own features, and the head lowers the cross-entropy,
    all in the same steps. Then the assembled network trains as a whole, on the loss of `simultaneous`.
    """
    joint = max(1, round(_total(to) * JOINT_SHARE))
    compared = tuple(Comparison((name,)) for name in to.blocks)
    blocks = Phase("blocks", to.stages, _total(to) - joint, compared, labels=1.0, fed_by="teacher", alone=True)
    return [blocks, _joint("joint", to, joint)]


@method
def attention(to: Setting, *, weight: Weight = 10.0) -> list[Phase]:
    """Attention transfer (arXiv 1612.03928, eq. 2): where each feature is strong, and labels.

    Cross-entropy + weight * mean over the features of |Q_S / |Q_S| - Q_T / |Q_T||^2; `weight` is beta / 2 of eq. (2).
    """
    compared = (Comparison((name,), weight / len(to.blocks), _attention, adapted=False) for name in to.blocks)
    return [_whole("attention", to, tuple(compared), labels=1.0)]


@method
def fsp(to: Setting, *, weight: Weight = 1.0) -> list[Phase]:
    """Flow of solution procedure (Yim et al., CVPR 2017, eq. 1 and 2): how each feature becomes the next, and labels.

    Cross-entropy + weight * mean over neighbouring features of mean((G_S - G_T)^2).
    """
    pairs = list(zip(to.blocks, to.blocks[1:], strict=False))
    compared = (Comparison(pair, weight / len(pairs), _flow) for pair in pairs)
    return [_whole("fsp", to, tuple(compared), labels=1.0)]


@method
def channelwise(to: Setting, *, temperature: Temperature = 4.0, weight: Weight = 1.0) -> list[Phase]:
    """Channel-wise distillation (CWD, arXiv 2011.13256, eq. 3 and 4): where each channel is strong, and labels.

    Cross-entropy + weight * mean over the features of T^2 KL of each channel's softmax over positions.
    """
    measure = partial(_channelwise, temperature=temperature)
    compared = (Comparison((name,), weight / len(to.blocks), measure) for name in to.blocks)
    return [_whole("channelwise", to, tuple(compared), labels=1.0)]


@method
def hdkd(to: Setting, *, temperature: Temperature = 4.0, weight: Weight = 0.1, alpha: Alpha = 1.0) -> list[Phase]:
    """HDKD (El-Assiouti et al., arXiv 2407.07516): soft logits and all features, later ones with more weight.

    T^2 KL(teacher || student) + weight * sum over i of (i + 1)^alpha * mean((S_i - T_i)^2), i from 0.
    """
    features = (Comparison((name,), weight * (place + 1) ** alpha) for place, name in enumerate(to.blocks))
    return [_whole("hdkd", to, (_soft_logits(temperature, 1.0), *features))]


@method
def dearkd(to: Setting) -> list[Phase]:
    """DearKD (Chen et al., arXiv 2204.12997): the encoder's first features, then every stage on labels alone.

    mean((S_k - T_k)^2) summed over the first three features; then the cross-entropy.
    """
    compared = to.blocks[:EARLY_STAGES]
    early = to.stages[: to.stages.index(compared[-1]) + 1]
    first = Phase("early", early, to.epochs * len(early), tuple(Comparison((name,)) for name in compared))
    return [first, Phase("labels", to.stages, _total(to) - first.epochs, labels=1.0)]


@from_snapshots
@method
def multi_teacher_gan(to: Setting, *, deception: Deception = 0.01) -> list[Phase]:
    """Multi-teacher GAN (Huang et al., 2021): stage by stage against later and later snapshots of the teacher.

    Stage k lowers mean((S_k - T_k)^2) - deception * log D(S_k), while a discriminator D learns to tell S_k from T_k
    (arXiv 1406.2661, eq. 1, the student's part non-saturating); the head learns from labels. A stage's epochs are
    divided among the teachers; with fewer epochs than teachers the earliest are left out.
    """
    phases = []
    for group in to.groups[:-1]:
        name = group[-1]
        for teacher, epochs in _shared(to.epochs * len(group), to.teachers):
            compared = (Comparison((name,), teacher=teacher, discriminator=deception),)
            phase = name if teacher == to.teachers[-1] else f"{name}-{teacher}"
            phases.append(Phase(phase, group, epochs, compared, alone=True))
    return [*phases, _alone(to.groups[-1], to.epochs * len(to.groups[-1]))]


def soft_labels(weight: float) -> Comparison:
    """The teacher's logits as soft labels at temperature 1, which replace labels where there are none."""
    return _soft_logits(1.0, weight)


def _together(to: Setting, share: float) -> int:
    """The epochs of a last phase of all stages that gets this share of all. Every stage keeps at least one."""
    if share and to.epochs < 2:
        few = "a last phase of all stages (option joint) needs at least two epochs a stage"
        raise UserError(f"{few}: raise {named('optimisation.epochs')}", "options")
    return min(max(1, round(_total(to) * share)), _total(to) - len(to.stages)) if share else 0


def _stage_by_stage(to: Setting, epochs: int, soft: float = 0.0) -> list[Phase]:
    """A phase for each stage that has a partner in the teacher, with so many epochs in all; see `_alone`."""
    each = dict(zip(to.stages, _even(epochs, len(to.stages)), strict=True))
    return [_alone(group, sum(each[name] for name in group), soft) for group in to.groups]


def _alone(group: Sequence[str], epochs: int, soft: float = 0.0) -> Phase:
    """A phase of `stagewise`: on the feature of the group's last stage, or on labels where that is the head.

    The head learns from the teacher's answers, too, where these have a weight, `soft`.
    """
    if group[-1] == HEAD:
        answers = (soft_labels(soft),) if soft else ()
        return Phase(HEAD, tuple(group), epochs, answers, labels=1.0 - soft, alone=True)
    return Phase(group[-1], tuple(group), epochs, (Comparison((group[-1],)),), alone=True)


def _total(to: Setting) -> int:
    return to.epochs * len(to.stages)


def _whole(name: str, to: Setting, compared: tuple[Comparison, ...] = (), labels: float = 0.0) -> Phase:
    return Phase(name, to.stages, _total(to), compared, labels)


def _joint(name: str, to: Setting, epochs: int) -> Phase:
    """All stages on the mean of all feature losses and the cross-entropy (eleven losses in a ResNet U-Net)."""
    share = 1 / (len(to.blocks) + 1)
    return Phase(name, to.stages, epochs, tuple(Comparison((n,), share) for n in to.blocks), labels=share)


def _middle(to: Setting, part: str) -> int:
    """One more than the place of the middle one of the compared stages of the encoder or decoder; 0 for none."""
    places = [to.stages.index(name) for name in to.blocks if name.startswith(part)]
    return places[len(places) // 2] + 1 if places else 0


def _shared(epochs: int, teachers: Sequence[str]) -> list[tuple[str, int]]:
    """(teacher, epochs) of each teacher that gets at least one epoch; the numbers differ by one at most."""
    used = teachers[-epochs:]
    return list(zip(used, _even(epochs, len(used)), strict=True))


def _even(epochs: int, parts: int) -> list[int]:
    """Epochs divided into parts that differ by one at most; the parts add up to `epochs`."""
    marks = [-(-epochs * place // parts) for place in range(parts + 1)]
    return [end - begin for begin, end in itertools.pairwise(marks)]


def _soft_logits(temperature: float, weight: float) -> Comparison:
    return Comparison((HEAD,), weight, partial(_softened, temperature=temperature), adapted=False)


def _softened(student: Sequence[Tensor], teacher: Sequence[Tensor], *, temperature: float) -> Tensor:
    """`soft_loss` over the student's classes: a teacher may have one output for two classes, or one output too many."""
    return soft_loss(student[0], logits_of(teacher[0], student[0].shape[1]), temperature=temperature)


def _attention(student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
    return attention_loss(student[0], teacher[0])


def _flow(student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
    return flow_loss(*student, *teacher)


def _channelwise(student: Sequence[Tensor], teacher: Sequence[Tensor], *, temperature: float) -> Tensor:
    return channelwise_loss(student[0], teacher[0], temperature=temperature)
