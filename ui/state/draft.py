"""The run that the Distill tab's fields describe, its teacher's run if that is trained first, and their problems."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

from segskd.config import SCHEMA, Recipe, Size
from segskd.data.cards import load_card
from segskd.data.subset import ASK_TEACHER
from segskd.distill.planning.settle import default_epochs
from segskd.errors import UserError, in_labels
from segskd.folders import home
from segskd.models.first_weights import is_file
from segskd.runs import default_name, free_name

from ..context import Context
from ..jobs import check_name
from .admission import FILES_BY_COMMAND, check_card, check_unlabelled, first_weights
from .choice import Choice
from .form import FIELDS, TEACHER_FIELDS, FieldError, Form, TeachForm, command
from .outline import Outline, errors_beside, outline
from .teachers import Teacher, best_teacher, check_hub_id, find_teacher, fits, list_teachers

TeacherFrom = Literal["known", "hub", "train", "none"]
FEW_EPOCHS = 4
"""The page gives a hint if there are this many times fewer epochs than the default."""
SAMPLE_SIZE = "96x128"
"""The size for the built-in scenes. It is large enough for them, and fast without a GPU."""
T = TypeVar("T")


@dataclass
class Draft:
    """A run that has not started. `problems` are messages by field; with problems, other parts may be missing.

    `teach` is the recipe of the teacher's run, if that is trained first, and `teach_name` its name. `teacher` is the
    network that was chosen from this server's list.
    """

    name: str = ""
    recipe: Recipe | None = None
    outline: Outline | None = None
    teacher: Teacher | None = None
    teach: Recipe | None = None
    teach_name: str = ""
    teach_outline: Outline | None = None
    problems: dict[str, str] = field(default_factory=dict)
    hints: dict[str, str] = field(default_factory=dict)

    @property
    def first(self) -> Recipe | None:
        """The recipe that is trained first, which the pre-flight can measure."""
        return self.teach or self.recipe

    @property
    def measurable(self) -> bool:
        """Whether the pre-flight can run. It can't load a teacher that still trains."""
        return not self.problems and self.first is not None and (self.teacher is None or self.teacher.ready)

    def data_line(self, choice: Choice) -> str:
        """One line that describes the training images."""
        if self.outline is None or self.recipe is None:
            return Path(choice.card).stem
        outline, rule = self.outline, self.recipe.subset.rule
        how = "picked by hand" if rule == "hand" else f"chosen by the rule «{rule}»"
        held = f", {outline.held_out} more held out for choosing" if outline.held_out else ""
        own, further = outline.images - outline.unlabelled, outline.unlabelled
        place = Path(self.recipe.data.unlabelled or "").name
        more = f", and {further} without labels from {place}" if further else ""
        return f"{outline.card.name} · {own} of {outline.total} training images, {how}{held}{more}"

    def plan(self) -> dict[str, Any]:
        """The data of the panel of stages: {"run", "teacher"}, empty while there are problems."""
        if self.outline is None:
            return {}
        return {"run": self.outline.as_dict(), "teacher": self.teach_outline and self.teach_outline.as_dict()}

    def commands(self, context: Context) -> str:
        """The shell commands that start the same runs, a line each; "" while there are problems."""
        if self.problems or self.recipe is None:
            return ""
        lines = [command(_with_folder(self.recipe, context), _run_place(context, self.name))]
        if self.teach is not None:
            place = _run_place(context, self.teach_name, as_folder=True)
            lines.insert(0, command(_with_folder(self.teach, context), place))
        return "\n".join(lines)


def make_draft(context: Context, values: Mapping[str, Any]) -> Draft:
    """The draft for the values of the page's fields. Errors are put into `problems`, and none is raised."""
    draft = Draft()
    form = read_form(context, values)
    try:  # the page may send any path
        check_card(context, form.choice.card)
    except UserError as error:
        draft.problems["data"] = in_labels(error)
        return draft
    source: TeacherFrom = values.get("teacher_from") or "known"
    place = _collect(draft, lambda: _teacher_place(context, draft, form, source, values))
    form = form.replaced(teacher=place or None)
    earlier_problems = dict(draft.problems)
    folder = form["unlabelled"] or ""
    if folder and _collect(draft, lambda: _check_unlabelled(context, folder)) is None:
        form = form.replaced(unlabelled=None)
    form = _collect(draft, lambda: _with_first_weights(context, form)) or form.replaced(init=None, weights=None)
    draft.recipe = _collect(draft, form.recipe)
    if place is None and "teacher" in draft.problems.keys() - earlier_problems.keys():
        del draft.problems["teacher"]  # the recipe's own message is for the command line
        draft.problems |= earlier_problems or {"teacher": _no_teacher(source, form["method"])}
    if recipe := draft.recipe:
        draft.outline = _collect(draft, lambda: outline(recipe, context.data))
    _collect(draft, lambda: _choose_name(context, draft, values))
    if draft.outline and draft.teacher:
        _collect(draft, lambda: _check_teacher(draft))
    _add_hints(draft, form.choice)
    return draft


def read_form(context: Context, values: Mapping[str, Any]) -> Form:
    """The form with the values of the fields, without the teacher. Its data lie in this server's folder."""
    choice = Choice.from_dict(values.get("choice"))
    seed = values.get("seed", choice.seed)
    seed = int(seed) if isinstance(seed, float) and seed.is_integer() else seed
    own = {name: values.get(name) for name in FIELDS if name not in ("folder", "teacher")}
    return Form(replace(choice, seed=0 if seed is None else seed), folder=str(context.data), **own)


def propose(context: Context, choice: Choice, source: TeacherFrom, known: str | None) -> dict[str, Any]:
    """A proposal that suits the chosen data: {"teacher_from", "known", "size"}, empty if nothing needs to change.

    The proposal is the teacher that the Data tab used. Otherwise it is the chosen teacher, if it has the dataset's
    classes, then the best one of this server, and then a teacher that is trained first.
    """
    teachers = list_teachers(context)
    try:
        card = load_card(choice.card)
    except UserError:  # the page shows it with the data
        return {}
    asked = choice.teacher if choice.rule in ASK_TEACHER else None
    current = find_teacher(teachers, known) if known else None
    teacher = find_teacher(teachers, asked) if asked else None
    if teacher is None:
        if source in ("hub", "none") or (source == "known" and current and fits(current, card)):
            return {}
        teacher = best_teacher(teachers, card) if source == "known" else None
    if teacher is None:
        return {"teacher_from": "train", "size": SAMPLE_SIZE if card.generator else SCHEMA["size"].default}
    size = {"size": f"{teacher.size[0]}x{teacher.size[1]}"} if teacher.size else {}
    return {"teacher_from": "known", "known": teacher.key, **size}


def submit(context: Context, draft: Draft) -> str:
    """Puts the draft's runs in the queue, the teacher's first, and returns the student's name.

    Raises FieldError, and starts nothing, if there are problems or a name was taken in the meantime.
    """
    if draft.problems or draft.recipe is None:
        first = next(iter(draft.problems), "form")
        raise FieldError(first, draft.problems.get(first, "correct the marked fields"), draft.problems)
    with errors_beside("name"):
        _check_free(context, draft.name)
    if draft.teach is not None:
        with errors_beside("teach_name"):
            context.jobs.submit(draft.teach, draft.teach_name)
    with errors_beside("name"):
        context.jobs.submit(draft.recipe, draft.name)
    return draft.name


def submit_teacher(context: Context, draft: Draft) -> str:
    """Puts the teacher's run alone in the queue and returns its name. Raises FieldError."""
    if draft.teach is None or any(name.startswith("teach_") or name == "data" for name in draft.problems):
        first = next((name for name in draft.problems if name.startswith("teach_")), "data")
        raise FieldError(first, draft.problems.get(first, "choose «Train one first»"), draft.problems)
    with errors_beside("teach_name"):
        context.jobs.submit(draft.teach, draft.teach_name)
    return draft.teach_name


def card_name(choice: Choice) -> str:
    """The dataset's name, or the card's file name if the card can't be read."""
    try:
        return load_card(choice.card).name
    except UserError:
        return Path(choice.card).stem


def _teacher_place(
    context: Context, draft: Draft, form: Form, source: TeacherFrom, values: Mapping[str, Any]
) -> str | None:
    if source == "hub":
        with errors_beside("hub"):
            return check_hub_id(values.get("hub") or "")
    if source == "train":
        return _teach_first(context, draft, form, values)
    if source == "known" and (key := values.get("known")):
        draft.teacher = find_teacher(list_teachers(context), str(key))
        if draft.teacher is None:
            raise FieldError("teacher", "this teacher was deleted, or its training stopped: choose another one")
        return str(draft.teacher.place)
    return None


def _with_first_weights(context: Context, form: Form) -> Form:
    """The form with the folder of the run whose weights the student begins with. Raises FieldError."""
    return form.replaced(init=first_weights(context, form["init"] or None, form["weights"] or None))


def _teach_first(context: Context, draft: Draft, form: Form, values: Mapping[str, Any]) -> str:
    """Drafts the teacher's run and returns its folder."""
    encoder = values.get("teach_encoder") or ""
    own = {field: values.get(f"teach_{field}") for field in ("epochs", "lr", "weights", "snapshots")}
    if own["weights"] and is_file(own["weights"]):
        raise FieldError("teach_weights", FILES_BY_COMMAND)
    teach_form = TeachForm(encoder, **own)
    with errors_beside("teach_name"):
        wish = (values.get("teach_name") or "").strip()
        card = card_name(form.choice)
        draft.teach_name = check_name(wish) if wish else free_name(f"{card}-{encoder}-teacher", context.runs)
        _check_free(context, draft.teach_name)
    draft.teach = teach_form.recipe(form)
    try:
        draft.teach_outline = outline(draft.teach, context.data)
    except FieldError as error:
        raise FieldError(TEACHER_FIELDS.get(error.field, error.field), error.message) from error
    return str(context.runs / draft.teach_name)


def _choose_name(context: Context, draft: Draft, values: Mapping[str, Any]) -> None:
    wish = (values.get("name") or "").strip()
    with errors_beside("name"):
        if wish:
            draft.name = check_name(wish)
            _check_free(context, wish)
        elif draft.recipe and draft.outline:
            draft.name = free_name(default_name(draft.recipe, draft.outline.card.name), context.runs)
        if wish and wish == draft.teach_name:
            raise UserError("the teacher's run has this name: give the student another one")


def _check_free(context: Context, name: str) -> None:
    if (context.runs / name).exists():
        raise UserError(f"there is already a run {name}: give another name")


def _check_teacher(draft: Draft) -> None:
    if draft.teacher and draft.outline:
        with errors_beside("teacher"):
            draft.teacher.check(draft.outline.card)


def _add_hints(draft: Draft, choice: Choice) -> None:
    for name, part in (("epochs", draft.outline), ("teach_epochs", draft.teach_outline)):
        if part and not part.epochs_chosen and part.epochs * FEW_EPOCHS <= default_epochs(part.images):
            draft.hints[name] = (
                f"The default is {default_epochs(part.images)} epochs. With so few the network learns less."
            )
    if draft.teacher and not draft.teacher.ready:
        draft.hints["teacher"] = (
            "This teacher still trains. The student waits in the queue until the teacher is finished."
        )
    asked = choice.teacher
    if choice.rule not in ASK_TEACHER or not asked or draft.teacher is None or draft.recipe is None:
        return
    choosers = (Path(asked).name, draft.teacher.name)
    if find_teacher([draft.teacher], asked) is not None:
        choosers = (_in_words(draft.teacher.asking_size), _in_words(draft.recipe.data.size))
    if choosers[0] != choosers[1]:
        draft.hints["data"] = (
            f"The images shown on Data were chosen with {choosers[0]}. This run chooses with {choosers[1]}, so it may "
            "take other images."
        )


def _in_words(size: Size) -> str:
    return f"images of {size[0]}x{size[1]}"


def _check_unlabelled(context: Context, folder: str) -> bool:
    with errors_beside("unlabelled"):
        check_unlabelled(context, folder)
    return True


def _no_teacher(source: TeacherFrom, method: str | None) -> str:
    if source == "none":
        return f"method {method} learns from a teacher: choose one, train one first, or use method supervised"
    return "choose a teacher, upload one, or train one first"


def _with_folder(recipe: Recipe, context: Context) -> Recipe:
    """The recipe without its data folder, if that is the folder in which commands look by default."""
    usual = context.data == home() / "datasets"
    return recipe.model_copy(update={"data": recipe.data.model_copy(update={"folder": None})}) if usual else recipe


def _run_place(context: Context, name: str, as_folder: bool = False) -> str:
    usual = context.runs == home() / "checkpoints"
    if usual:
        return f"checkpoints/{name}" if as_folder else name
    return str(context.runs / name)


def _collect(draft: Draft, make: Callable[[], T]) -> T | None:
    """The result of `make`, or None after adding its problems. A field keeps its first message."""
    try:
        return make()
    except FieldError as error:
        draft.problems = {**error.problems, **draft.problems}
        return None
