"""`nemo-agents demo`: the main job from end to end, on this machine alone."""

from __future__ import annotations

import os
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from nemo_agents import environment
from nemo_agents.cli.output import console
from nemo_agents.errors import ProvisionError, RateLimited, SettingsError

if TYPE_CHECKING:
    from nemo_agents.client import Client
    from nemo_agents.fleet import Fleet
    from nemo_agents.gateway.server import Running
    from nemo_agents.trace.run import Run

__all__ = ["demo"]

QUESTION = "What is a CRDT, and when is it the wrong choice?"
_TOOLS = [
    {
        "type": "function",
        "function": {
            "name": name,
            "description": description,
            "parameters": {"type": "object", "properties": {argument: {"type": "string"}}, "required": [argument]},
        },
    }
    for name, description, argument in (
        ("web_search", "Search the web for pages about a topic", "query"),
        ("fetch_url", "Fetch one page by its address", "url"),
    )
]


@click.command()
@click.option("--keep", is_flag=True, help="Keep the gateway and the run page up until interrupted.")
@click.option("--real", is_flag=True, help="Use the providers whose keys are in the environment. This costs money.")
@click.option("--port", type=click.IntRange(0, 65535), default=0, help="Port of the gateway; 0 picks a free one.")
@click.option(
    "--home", type=click.Path(path_type=Path), help="Keep the demo's data in this folder instead of a temporary one."
)
def demo(*, keep: bool, real: bool, port: int, home: Path | None) -> None:
    """Run the example fleet: plan, provision, a run of five steps, a run that meets its budget, a loop that meets 429.

    Everything happens on this machine: the built-in sandbox provider stands in for the models, at their real prices.
    """
    with _folder(home) as folder, _gateway(folder, port, real=real) as running:
        fleet = _example_fleet().connect(running.url, home=folder, environ={})
        with _client(running) as client:
            _provision(fleet, running, client, folder)
            runs = [_research(fleet), _capped(fleet), _runaway(fleet)]
            _show(runs, client)
            _status(client)
            _where(runs[1], client, keep=keep)
        if keep:
            _wait_for_interrupt()


@contextmanager
def _folder(home: Path | None) -> Iterator[Path]:
    if home is not None:
        yield home
        return
    with tempfile.TemporaryDirectory(prefix="nemo-demo-") as name:
        yield Path(name) / "home"


@contextmanager
def _gateway(folder: Path, port: int, *, real: bool) -> Iterator[Running]:
    try:
        from nemo_agents.gateway.providers import KEY_ENV_OF
        from nemo_agents.gateway.settings import Settings
        from nemo_agents.gateway.threaded import serve_in_thread
    except ImportError as error:
        raise SettingsError(
            f"the demo needs the gateway ({error.name}). Run: pip install 'nemo-agents[gateway]'"
        ) from error
    found = [name for name in KEY_ENV_OF.values() if os.environ.get(name)]
    _title("1. The gateway")
    settings = Settings(home=folder, port=port, sandbox="on", log_level="error")
    with serve_in_thread(settings, _environment(real=real)) as running:
        click.echo(f"listening on {running.url}, data in {folder}")
        providers = [name for name in running.gateway.providers if name != "sandbox"]
        if real and providers:
            click.echo(f"provider: {', '.join(providers)} (real calls, real money); the sandbox for models of others")
        else:
            click.echo(
                "provider: sandbox, built in: made-up answers at the real models' prices, no network, no account"
            )
            if found:
                click.echo(f"found {', '.join(found)}: `nemo-agents demo --real` would use it")
        yield running


def _environment(*, real: bool) -> Mapping[str, str]:
    """Return the environment the gateway sees: without `--real` no key of a provider, so that no call can leave."""
    if real:
        return {name: value for name, value in os.environ.items() if name != environment.ADMIN_KEY}
    return {}


def _example_fleet() -> Fleet:
    from nemo_agents.fleet import Fleet

    return Fleet.from_file(example_file("fleet.py"))


def example_file(name: str) -> Path:
    """Return a file of the example fleet: from the installed package, or from the clone it runs in."""
    for folder in (Path(__file__).parent / "research_crew", Path(__file__).parents[2] / "examples" / "research_crew"):
        if (folder / name).exists():
            return folder / name
    raise ProvisionError(f"the example file {name} is missing from this installation; reinstall nemo-agents")


def _client(running: Running) -> Client:
    from nemo_agents.client import Client

    return Client(running.url, running.secrets.admin_key)


def _provision(fleet: Fleet, running: Running, client: Client, folder: Path) -> None:
    from nemo_agents.provision import operate
    from nemo_agents.provision.apply import apply
    from nemo_agents.provision.keystore import FileKeyStore
    from nemo_agents.provision.render import plan_to_text

    _title("2. Plan and provision:  nemo-agents provision fleet.py")
    store = FileKeyStore(folder / "keys.json")
    plan = client.run(operate.prepare(fleet, running.url, store))
    click.echo(plan_to_text(plan))
    client.run(apply(plan, store))
    again = client.run(operate.prepare(fleet, running.url, store))
    click.echo(f"applied; planning again finds {'nothing to change' if again.is_empty else 'changes'}")


def _research(fleet: Fleet) -> Run:
    _title("3. A run of five steps, each on its role's key and its own model")
    with fleet.run(f"answer: {QUESTION}", budget="$0.50", max_calls=50) as run:
        with run.step("plan", role="orchestrator") as step:
            step.result = _say(step, "fast-reasoning", f"Plan in three steps how to answer: {QUESTION}")
        with run.step("choose tools", role="researcher") as step:
            answer = _ask(step, "gpt-4o-mini", f"Search the web for: {QUESTION}", tools=_TOOLS)
            calls = answer.choices[0].message.tool_calls or []
            step.result = [(call.function.name, call.function.arguments) for call in calls]
        click.echo(f"  {'choose tools':14} {', '.join(name for name, _ in step.result) or 'none'}")
        with run.step("research", role="researcher") as step:
            step.result = _say(
                step, "gpt-4o-mini", f"Collect the facts that answer: {QUESTION} Ask anna@example.com if unsure."
            )
            with run.step("embed notes", role="embeddings") as inner:
                notes = inner.openai().embeddings.create(model="text-embedding-3-small", input=step.result)
                inner.result = len(notes.data[0].embedding)
        with run.step("synthesize", role="writer") as step:
            step.result = _say(step, "claude-3-5-sonnet-20241022", f"Write a short answer to: {QUESTION}", stream=True)
        with run.step("critique", role="critic") as step:
            step.result = _say(step, "gpt-4o-mini", "Name the weakest claim of the answer above.")
        run.result = step.result
    click.echo(f"run {run.id[:8]} ended {run.state}: {run.calls} calls, {run.cost}")
    return run


def _capped(fleet: Fleet) -> Run:
    _title("4. A run with a cap of $0.03: the gateway answers 402, the run ends with what it has")
    drafts: list[str] = []
    with fleet.run("write drafts until satisfied", budget="$0.03") as run, run.step("draft", role="writer") as step:
        while True:
            prompt = f"Draft {len(drafts) + 1}: a better essay about CRDTs."
            drafts.append(_say(step, "claude-3-5-sonnet-20241022", prompt, max_tokens=600, output_tokens=480))
            run.result = drafts
    stopped = run.stopped_by
    why = f"{stopped.code}: {stopped.message}" if stopped else "nothing stopped it"
    click.echo(f"stopped by {stopped.kind if stopped else '-'} ({why})")
    click.echo(f"the program goes on, with {len(run.result or [])} drafts in run.result and {run.cost} spent")
    return run


def _runaway(fleet: Fleet) -> Run:
    _title("5. A runaway loop: the same question again and again, until the role's 30 requests a minute are used")
    served = 0
    with fleet.run("runaway loop") as run, run.step("loop", role="orchestrator") as step:
        client = step.openai().with_options(max_retries=0)
        try:
            while True:
                client.chat.completions.create(
                    model="fast-reasoning", messages=[{"role": "user", "content": "Are we there yet?"}], max_tokens=20
                )
                served += 1
        except RateLimited as refused:
            click.echo(f"  429 after {served} calls: {refused.message}")
            step.result = served
    click.echo(f"run {run.id[:8]}: {run.cost} spent")
    return run


def _say(step: Any, model: str, prompt: str, *, stream: bool = False, **options: Any) -> str:
    """Ask a model as this step's role, print the first words of the answer, and return it."""
    if stream:
        parts = _ask(step, model, prompt, stream=True, **options)
        answer = "".join(part.choices[0].delta.content or "" for part in parts if part.choices)
    else:
        answer = _ask(step, model, prompt, **options).choices[0].message.content or ""
    first = answer.replace("\n", " ")
    click.echo(f"  {step.label:14} {first[:90]}{'…' if len(first) > 90 else ''}")
    return answer


def _ask(
    step: Any, model: str, prompt: str, *, max_tokens: int = 400, output_tokens: int | None = None, **options: Any
) -> Any:
    """Call the unmodified openai client. `output_tokens` scripts the sandbox; real providers never see it."""
    if output_tokens is not None:
        options["extra_body"] = {"nemo_sandbox": {"output_tokens": output_tokens}}
    messages = [{"role": "user", "content": prompt}]
    return step.openai().chat.completions.create(model=model, messages=messages, max_tokens=max_tokens, **options)


def _show(runs: list[Run], client: Client) -> None:
    from nemo_agents.admin import observe
    from nemo_agents.cli.tree import print_run

    _title("6. What happened:  nemo-agents runs show")
    for run in runs[:2]:
        print_run(client.run(observe.run(run.id)))


def _status(client: Client) -> None:
    from nemo_agents.admin import observe
    from nemo_agents.cli.observe import print_status

    _title("7. Where the fleet stands:  nemo-agents status")
    for fleet in client.run(observe.status()):
        print_status(fleet)
    problems = client.run(observe.verify()).get("problems", [])
    click.echo(f"ledger: {'every balance adds up' if not problems else '; '.join(problems)}")


def _where(run: Run, client: Client, *, keep: bool) -> None:
    from nemo_agents.admin import observe

    _title("8. The run page")
    click.echo(client.run(observe.viewer_link(f"/runs/{run.id}")))
    if not keep:
        click.echo("It closes with the demo. To look at it: make demo KEEP=1, or nemo-agents demo --keep")


def _wait_for_interrupt() -> None:
    click.echo("Running until you press Ctrl-C.")
    sys.stdout.flush()
    stop = threading.Event()
    previous: dict[signal.Signals, Any] = {}
    for number in (signal.SIGINT, signal.SIGTERM):
        previous[number] = signal.signal(number, lambda *_: stop.set())
    stop.wait()
    for number, handler in previous.items():
        signal.signal(number, handler)


def _title(text: str) -> None:
    console().print(f"\n{text}", style="bold")
