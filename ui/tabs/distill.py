"""The Distill tab: teacher, student and method, what the run will need, and Start."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import gradio as gr

from segskd.config import SCHEMA, Recipe, dump_recipe, load_recipe
from segskd.errors import UserError, in_labels

from ..components import notice
from ..context import Context
from ..handlers import QUIET
from ..page import Page
from ..state.admission import form_values, unlabelled_folders
from ..state.choice import Choice
from ..state.draft import Draft, make_draft, propose, submit, submit_teacher
from ..state.form import FIELDS, FieldError, as_text
from ..state.outline import method_options, method_sentences, option_sentences
from ..state.preflights import recipe_key
from ..state.teachers import add_upload, list_teachers
from .distill_fields import NO_FOLDER
from .distill_layout import Layout

# The handlers of all visitors run one after the other, so that answers come in the order of their questions. Long work
# has a queue of its own.
IN_TURN: dict[str, Any] = {**QUIET, "concurrency_id": "distill", "concurrency_limit": 1}
ADVANCED = {field.name for field in SCHEMA if field.place == "advanced"}
Updates = dict[Any, Any]


def build(context: Context, page: Page) -> None:
    """Adds the tab's components to the page."""
    with gr.Column(elem_id="distill"):
        Distill(context, page)


class Distill(Layout):
    """The tab's components and the handlers that join them to the core."""

    def __init__(self, context: Context, page: Page) -> None:
        super().__init__(context)
        self.page = page
        self._starts: dict[str, dict[str, Any]] = {}  # runs that wait for their pre-flight; both end with the server
        self._listen()

    # -- events -------------------------------------------------------------------------------------

    def _listen(self) -> None:
        inputs = self.fields.inputs
        given = [self.page.choice, *inputs.values()]
        every = [
            *inputs.values(), *self.fields.notices.values(), *self.teacher["groups"].values(), self.data, self.plan,
            self.same, self.preflight, self.begin, self.unchecked, self.advanced, self.page.choice,
            self.page.run, self.page.tabs, self.page.cloned, self.chosen_source,
        ]  # fmt: skip

        def on(trigger: Any, handler: Callable[..., Updates], more: Any = (), **arguments: Any) -> None:
            trigger(handler, [*more, *given], every, **{**IN_TURN, **arguments})

        for trigger in (self.pulse.shown, self.page.choice.change):
            trigger(None, None, self.look_time, js="() => String(performance.now())", api_visibility="private")
        on(self.look_time.change, self._on_look, [self.chosen_source, self.page.cloned], trigger_mode="always_last")
        on(self.pulse.moved, self._on_server_change, trigger_mode="always_last")
        changes = [component.change for component in inputs.values()]
        gr.on(changes, self._on_change, given, every, trigger_mode="always_last", **IN_TURN)
        edited = [component.input for component in inputs.values()]
        gr.on(edited, None, None, self.fields.notices["form"], js="() => ({ text: '' })", api_visibility="private")
        source = inputs["teacher_from"]
        source.input(None, source, self.chosen_source, js="(source) => source", api_visibility="private")
        inputs["seed"].input(self._on_seed, [self.page.choice, inputs["seed"]], self.page.choice, **QUIET)
        self.to_data.click(lambda: self.page.go("data"), None, self.page.tabs, **QUIET)
        on(self.preflight.check, self._on_check)
        on(self.begin.click, self._on_start)
        on(self.preflight.proceed, self._on_preflight_end, trigger_mode="multiple")
        on(self.unchecked.click, self._on_start_unchecked)
        on(self.teacher["alone"].click, self._on_teach)
        upload, network = self.teacher["upload"]
        progress = {"show_progress": "minimal", "show_progress_on": upload}
        unpacked = upload.upload(self._on_upload, [upload, network], self.uploaded, **{**QUIET, **progress})
        on(unpacked.then, self._on_upload_end, [self.uploaded])
        on(self.load.upload, self._on_load, [self.load])
        on(self.page.cloned.change, self._on_clone, [self.page.cloned])
        self.preflight.take_batch(self._on_take_batch, None, inputs["batch"], **QUIET)

    def _values(self, given: tuple[Any, ...]) -> dict[str, Any]:
        return {"choice": given[0], **dict(zip(self.fields.inputs, given[1:], strict=True))}

    def _draft(self, values: dict[str, Any]) -> Draft:
        return make_draft(self.context, values)

    # -- handlers: each returns the components that change ----------------------------------------------

    def _on_change(self, *given: Any) -> Updates:
        values = self._values(given)
        return self._updates(self._draft(values), values)

    def _on_look(self, chosen_source: str, cloned: str, *given: Any) -> Updates:
        """The tab was opened, or the choice on Data changed: proposes a teacher and a size for it."""
        if cloned:  # a run's recipe will fill the form
            return {}
        values = self._values(given)
        before = values["known"]
        choice = Choice.from_dict(values["choice"])
        if values["teacher_from"] == "train" != chosen_source:  # the page proposed it for other data
            proposed = {"teacher_from": "known"} | propose(self.context, choice, "known", values["known"])
        else:
            proposed = propose(self.context, choice, values["teacher_from"], values["known"])
        if chosen_source == "known" and proposed.get("teacher_from") == "train":
            proposed = {}
        # Values that are there already are not set again, since somebody may change them meanwhile.
        proposed = {name: value for name, value in proposed.items() if values[name] != value}
        values |= proposed
        if values["choice"] is not None and values["seed"] != choice.seed:
            values["seed"] = proposed["seed"] = choice.seed
        inputs = {self.fields.inputs[name]: value for name, value in proposed.items() if name != "known"}
        return self._updates(self._draft(values), values) | inputs | self._teachers(values["known"], before)

    def _on_server_change(self, *given: Any) -> Updates:
        """The list of teachers changed, or training began or ended."""
        values = self._values(given)
        return self._updates(self._draft(values), values) | self._teachers(values["known"], values["known"])

    def _on_seed(self, choice: dict[str, Any] | None, seed: float | None) -> Any:
        """Sets the seed for Data, too. A wrong one stays here, with its message."""
        if seed is None or seed != int(seed) or seed < 0:
            return gr.skip()
        return replace(Choice.from_dict(choice), seed=int(seed)).as_dict()

    def _on_check(self, *given: Any) -> Updates:
        """Starts the pre-flight."""
        values = self._values(given)
        draft = self._draft(values)
        if draft.problems or not draft.measurable or draft.first is None:
            return self._updates(draft, values, complain=True)
        self.preflights.ask(draft.first)
        return self._updates(draft, values, poll=True)

    def _on_start(self, *given: Any) -> Updates:
        """Starts the run if its pre-flight says that it fits. Without one, starts the pre-flight, then the run."""
        values = self._values(given)
        draft = self._draft(values)
        if draft.problems or draft.first is None:
            return self._updates(draft, values, complain=True)
        if not draft.measurable:
            return self._submit(draft, values)
        verdict = self.preflights.state(self.preflights.ask(draft.first))
        if verdict["state"] == "fits":
            return self._submit(draft, values)
        if verdict["state"] in ("waiting", "running"):
            start = secrets.token_hex(8)
            self._starts[start] = values
            return self._updates(draft, values, poll=True, start=start)
        return self._refusal(draft, values, verdict)

    def _on_preflight_end(self, event: gr.EventData, *given: Any) -> Updates:
        """Starts the run that waited for its pre-flight, with the form's values of that time. The form stays."""
        earlier, values = self._starts.pop(str(event._data.get("start")), None), self._values(given)
        if earlier is None:
            return {}
        draft = self._draft(earlier)
        if earlier == values:
            return self._submit_if_it_fits(draft, values)
        try:
            self._check_fits(draft)
            name = submit(self.context, draft)
            result = notice(f"{name} was put into the queue.", "good")
        except UserError as error:
            result = notice(f"{draft.name or 'The run'} was not started: {in_labels(error)}.")
        return self._updates(self._draft(values), values) | {self.fields.notices["form"]: result}

    def _submit_if_it_fits(self, draft: Draft, values: dict[str, Any]) -> Updates:
        """Starts the run if the pre-flight says that it fits. A failed pre-flight is not repeated."""
        if draft.problems or draft.first is None:
            return self._updates(draft, values, complain=True)
        verdict = self.preflights.state(recipe_key(draft.first))
        return self._submit(draft, values) if verdict["state"] == "fits" else self._refusal(draft, values, verdict)

    def _check_fits(self, draft: Draft) -> None:
        """Raises UserError unless the pre-flight says that the run fits. `submit` checks the draft itself."""
        verdict = self.preflights.state(recipe_key(draft.first)) if draft.first else None
        if verdict and verdict["state"] != "fits":
            raise UserError(verdict["problem"] or "its pre-flight was cancelled")

    def _refusal(self, draft: Draft, values: dict[str, Any], verdict: dict[str, Any]) -> Updates:
        """Says why the run did not start. Offers a start without check if the pre-flight failed or a run trains."""
        busy = self.busy()
        open_end = verdict["state"] == "failed" or (bool(busy) and verdict["result"] is not None)
        text = f"Not started: {verdict['problem'] or 'its pre-flight was cancelled'}."
        if open_end and busy:
            text += f" {busy[0]} is training now. This run would begin after it."
        return self._updates(draft, values) | {
            self.fields.notices["form"]: notice(text),
            self.unchecked: gr.Button(f"{self.verb()} without the check", visible=open_end),
        }

    def _on_start_unchecked(self, *given: Any) -> Updates:
        values = self._values(given)
        return self._submit(self._draft(values), values)

    def _submit(self, draft: Draft, values: dict[str, Any]) -> Updates:
        try:
            name = submit(self.context, draft)
        except UserError as error:
            draft.problems |= error.problems if isinstance(error, FieldError) else {"form": in_labels(error)}
            return self._updates(draft, values, complain=True)
        cleared = {self.fields.inputs[field]: "" for field in ("name", "teach_name")}
        return {self.page.run: name, self.page.tabs: self.page.go("watch"), **cleared}

    def _on_teach(self, *given: Any) -> Updates:
        """Queues the teacher alone, and chooses it as the teacher."""
        values = self._values(given)
        draft = self._draft(values)
        try:
            name = submit_teacher(self.context, draft)
        except FieldError as error:
            draft.problems |= error.problems
            return self._updates(draft, values, complain=True)
        values |= {"teacher_from": "known", "known": f"run/{name}", "teach_name": ""}
        inputs = {self.fields.inputs["teacher_from"]: "known", self.fields.inputs["teach_name"]: ""}
        return self._updates(self._draft(values), values) | inputs | self._teachers(values["known"], None)

    def _on_upload(self, files: list[str] | None, network: str | None) -> dict[str, str]:
        """The key of the uploaded teacher, or the problem with it."""
        try:
            return {"key": add_upload([Path(file) for file in files or ()], self.context.runs, network or "")}
        except UserError as error:
            return {"problem": in_labels(error)}

    def _on_upload_end(self, found: dict[str, str], *given: Any) -> Updates:
        if "problem" in found:
            return {self.fields.notices["teacher"]: notice(found["problem"])}
        values = self._values(given) | {"teacher_from": "known", "known": found["key"]}
        return self._updates(self._draft(values), values) | self._teachers(found["key"], None)

    def _on_load(self, file: str, *given: Any) -> Updates:
        """Fills the form with the recipe in a file."""
        name = Path(file).name
        try:
            return self._fill_form(load_recipe(file), given, name)
        except UserError as error:
            return {self.fields.notices["load"]: notice(in_labels(error).replace(str(file), name))}

    def _on_clone(self, name: str, *given: Any) -> Updates:
        """Fills the form with the recipe of a run that is cloned on the Runs tab."""
        if not name:
            return {self.page.cloned: ""}
        try:
            updates = self._fill_form(self.context.run(name).recipe, given, name)
        except UserError as error:
            updates = {self.fields.notices["form"]: notice(f"{name} can't be cloned: {in_labels(error)}")}
        return updates | {self.page.cloned: ""}  # so that the same run can be cloned again

    def _fill_form(self, recipe: Recipe, given: tuple[Any, ...], source: str) -> Updates:
        changes = form_values(self.context, recipe)
        values = self._values(given) | changes
        inputs = {component: _typed(changes[name]) for name, component in self.fields.inputs.items() if name in changes}
        before = self._values(given)["known"]
        updates = self._updates(self._draft(values), values) | inputs | self._teachers(values["known"], before)
        no_teacher = changes["teacher_from"] == "known" and changes["known"] is None
        text = f"{source} fills the form" + (", but its teacher is not on this server." if no_teacher else ".")
        message = {self.fields.notices["form"]: notice(text, "hint" if no_teacher else "good")}
        if any(changes.get(name) not in (None, "", SCHEMA[name].default) for name in ADVANCED):
            updates[self.advanced] = gr.Accordion(open=True)  # so that a person sees the recipe's values there
        updates[self.fields.inputs["method"]] = gr.Dropdown(
            value=values["method"], info=method_sentences().get(values["method"] or "", "")
        )
        return updates | message | {self.page.choice: changes["choice"], self.chosen_source: changes["teacher_from"]}

    def _on_take_batch(self, event: gr.EventData) -> Any:
        batch = event._data.get("batch")
        return str(batch) if isinstance(batch, int) else gr.skip()

    # -- values of components ---------------------------------------------------------------------

    def _updates(
        self,
        draft: Draft,
        values: dict[str, Any],
        complain: bool = False,
        poll: bool = False,
        start: str | None = None,
    ) -> Updates:
        """The values of all components that depend on the fields."""
        fields, source = self.fields, values["teacher_from"]
        updates: Updates = {group: gr.Column(visible=source == name) for name, group in self.teacher["groups"].items()}
        updates |= self._notices(draft, values, complain)
        updates[self.data] = {"text": draft.data_line(Choice.from_dict(values["choice"]))}
        updates[self.plan] = draft.plan()
        updates[self.same] = {
            "command": draft.commands(self.context),
            "recipe": dump_recipe(draft.recipe) if draft.recipe and not draft.problems else "",
            "name": draft.name,
        }
        key = recipe_key(draft.first) if draft.measurable and draft.first else None
        updates[self.preflight] = {
            "key": key,
            "of_teacher": draft.teach is not None,
            "teacher_coming": draft.teacher is not None and not draft.teacher.ready,
            "asked": time.time() if poll else None,
            "start": start and {"start": start, "name": draft.name},
            "verb": self.verb(),
        }
        sentence = method_sentences().get(values.get("method") or "", "")
        updates[fields.inputs["method"]] = gr.Dropdown(info=sentence)
        known = method_options(values.get("method") or "")
        info = option_sentences(values.get("method") or "") or SCHEMA["options"].help
        updates[fields.inputs["options"]] = gr.Textbox(placeholder=known or "this method has none", info=info)
        folders = [(path.name, str(path)) for path in unlabelled_folders(self.context)]
        updates[fields.inputs["unlabelled"]] = gr.Dropdown(choices=[NO_FOLDER, *folders])
        updates[self.begin] = gr.Button(self.verb())
        updates[self.unchecked] = gr.Button(visible=False)
        for field, part in (("epochs", draft.outline), ("teach_epochs", draft.teach_outline)):
            if part is not None:
                updates[fields.inputs[field]] = gr.Textbox(placeholder=str(part.epochs))
        if ADVANCED & draft.problems.keys():
            updates[self.advanced] = gr.Accordion(open=True)
        if draft.name and not values.get("name"):
            updates[fields.inputs["name"]] = gr.Textbox(placeholder=draft.name, info="empty: the name shown")
        if draft.teach_name and not values.get("teach_name"):
            updates[fields.inputs["teach_name"]] = gr.Textbox(
                placeholder=draft.teach_name, info="empty: the name shown"
            )
        return updates

    def _notices(self, draft: Draft, values: dict[str, Any], complain: bool) -> Updates:
        problems, source = dict(draft.problems), values["teacher_from"]
        if not (values["hub"] or complain):
            problems.pop("hub", None)  # nobody has typed yet
        if source != "known" and "teacher" in problems:  # its notice is below the list, which is hidden now
            problems["teacher_from"] = problems.pop("teacher")
        elsewhere = [text for name, text in problems.items() if name not in self.fields.notices]
        shown = {
            component: notice(problems[name]) if name in problems else notice(draft.hints.get(name, ""), "hint")
            for name, component in self.fields.notices.items()
            if name != "form"  # its message about a start or a recipe stays until somebody changes a field
        }
        if elsewhere:
            shown[self.fields.notices["form"]] = notice(" ".join(elsewhere))
        elif complain and problems:
            shown[self.fields.notices["form"]] = notice(f"Not started: {_in_one_line(problems)}")
        return shown

    def _teachers(self, chosen: str | None, before: str | None) -> Updates:
        """The list of teachers. A teacher that was deleted is no longer chosen.

        The choice `before` is not set again, since somebody may have chosen another one meanwhile.
        """
        teachers = list_teachers(self.context)
        value = chosen if any(teacher.key == chosen for teacher in teachers) else None
        choices = [(teacher.label, teacher.key) for teacher in teachers]
        known = gr.Dropdown(choices=choices) if value == before else gr.Dropdown(choices=choices, value=value)
        return {self.fields.inputs["known"]: known}


def _in_one_line(problems: Mapping[str, str]) -> str:
    """What is wrong, for the line beside Start, which is far from the field."""
    if len(problems) > 1:
        return f"{len(problems)} fields are marked. Correct them first."
    ((name, text),) = problems.items()
    return f"«{FIELDS[name].label}»: {text}" if name in FIELDS else text


def _typed(value: Any) -> Any:
    """A value for its component. None, and numbers that are not whole, become text."""
    return as_text(value) if value is None or isinstance(value, float) else value
