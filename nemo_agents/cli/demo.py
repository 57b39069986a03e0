"""`nemo-agents demo`: the main job from end to end, on this machine alone."""

from __future__ import annotations

import os
import signal
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from nemo_agents import environment
from nemo_agents.cli.connect import missing_part
from nemo_agents.cli.output import console, one_line, print_wrapped
from nemo_agents.errors import RateLimited, SettingsError

if TYPE_CHECKING:
    from rich.console import Console

    from nemo_agents.client import Client
    from nemo_agents.fleet import Fleet
    from nemo_agents.gateway.server import Running
    from nemo_agents.trace.run import Run

__all__ = ["demo"]

_FLEET_FILE = Path(__file__).with_name("research_crew.toml")  # in the wheel, where examples/ is not
_WIDTH = 100  # cells, where the output is not a terminal
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
@click.option("--home", type=click.Path(path_type=Path), help="Keep the demo's data in this new folder.")
def demo(*, keep: bool, real: bool, port: int, home: Path | None) -> None:
    """Run the example fleet: plan, provision, a run of five steps, a run that meets its budget, a loop that meets 429.

    Everything happens on this machine: the built-in sandbox provider stands in for the models, at their real prices.
    """
    to = console(piped_width=_WIDTH)
    with _folder(home) as folder, _gateway(to, folder, port, real=real) as running:
        fleet = _example_fleet().connect(running.url, home=folder, environ={})
        with _client(running) as client:
            _provision(to, fleet, running, client, folder)
            _load_openai(fleet)
            runs = [_research(to, fleet), _capped(to, fleet), _runaway(to, fleet)]
            _show(to, runs, client)
            _status(to, client)
            _where(to, runs[1], client, keep=keep)
        if keep:
            _wait_for_interrupt()


@contextmanager
def _folder(home: Path | None) -> Iterator[Path]:
    if home is not None:
        if (home / "gateway.db").exists():  # its keys and spend are somebody's, and not for a demo to change
            raise SettingsError(
                f"{home} has a gateway's data already. Name a new folder, or serve this one: "
                f"nemo-agents gateway --home {home}"
            )
        yield home
        return
    with tempfile.TemporaryDirectory(prefix="nemo-demo-", ignore_cleanup_errors=True) as name:
        yield Path(name) / "home"


@contextmanager
def _gateway(to: Console, folder: Path, port: int, *, real: bool) -> Iterator[Running]:
    try:
        import openai  # noqa: F401 - asked for here, so that a missing one is told before anything is done

        from nemo_agents.gateway.providers import KEY_ENV_OF
        from nemo_agents.gateway.settings import Settings
        from nemo_agents.gateway.threaded import serve_in_thread
    except ImportError as error:
        raise missing_part(error, "the demo needs the gateway") from error
    found = [name for name in KEY_ENV_OF.values() if os.environ.get(name)]
    _title(to, "1. The gateway")
    settings = Settings(home=folder, port=port, sandbox="on", log_level="error")
    with ExitStack() as stack:
        with _interrupt_deferred():  # half started, the gateway could not be stopped
            running = stack.enter_context(serve_in_thread(settings, _environment(real=real)))
        _tell(to, f"listening on {running.url}, data in {folder}")
        providers = [name for name in running.gateway.providers if name != "sandbox"]
        if real and providers:
            _tell(to, f"provider: {', '.join(providers)} (real calls, real money); the sandbox for models of others")
        else:
            _tell(to, "provider: sandbox, built in: made-up answers, the real models' prices, no network, no account")
            if found and not real:
                _tell(to, f"found {', '.join(found)}, not used: `nemo-agents demo --real` would, and it costs money")
        yield running


@contextmanager
def _interrupt_deferred() -> Iterator[None]:
    """Let a Ctrl-C wait for the end of the block."""
    pressed = threading.Event()
    previous = signal.signal(signal.SIGINT, lambda *_: pressed.set())
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)
    if pressed.is_set():
        raise KeyboardInterrupt


def _environment(*, real: bool) -> Mapping[str, str]:
    """Return the environment the gateway sees: without `--real` no key of a provider, so that no call can leave."""
    if real:
        return {name: value for name, value in os.environ.items() if name != environment.ADMIN_KEY}
    return {}


def _example_fleet() -> Fleet:
    from nemo_agents.fleet import Fleet

    return Fleet.from_file(_FLEET_FILE)


def _client(running: Running) -> Client:
    """Return a client of the demo gateway's admin API."""
    from nemo_agents.client import Client

    return Client(running.url, running.secrets.admin_key)


def _provision(to: Console, fleet: Fleet, running: Running, client: Client, folder: Path) -> None:
    from nemo_agents.cli.provision import print_plan
    from nemo_agents.provision import operate
    from nemo_agents.provision.apply import apply
    from nemo_agents.provision.keystore import FileKeyStore

    _title(to, "2. Plan and provision", "nemo-agents provision fleet.toml")
    store = FileKeyStore(folder / "keys.json")
    plan = client.run(operate.prepare(fleet, running.url, store))
    print_plan(to, plan)
    client.run(apply(plan, store))
    again = client.run(operate.prepare(fleet, running.url, store))
    _tell(to, f"  applied; planning again finds {'nothing to change' if again.is_empty else 'changes'}")


def _load_openai(fleet: Fleet) -> None:
    """Load what the openai package loads at first use: the first step shall take as long as its calls."""
    with fleet["orchestrator"].openai() as client:
        assert client.chat.completions is not None
        assert client.embeddings is not None


def _research(to: Console, fleet: Fleet) -> Run:
    _title(to, "3. A run of five steps, each with its role's key and its own model")
    with fleet.run(f"answer: {QUESTION}", budget="$0.50", max_calls=50) as run:
        with run.step("plan", role="orchestrator") as step:
            step.result = _say(to, step, "fast-reasoning", f"Plan in three steps how to answer: {QUESTION}")
        with run.step("choose tools", role="researcher") as step:
            answer = _ask(step, "gpt-4o-mini", f"Search the web for: {QUESTION}", tools=_TOOLS)
            calls = answer.choices[0].message.tool_calls or []
            step.result = [(call.function.name, call.function.arguments) for call in calls]
            named = ", ".join(name for name, _ in step.result) or "none"
            _line(to, step, f"the model asks for the tool: {named}")
        with run.step("research", role="researcher") as step:
            step.result = _say(
                to, step, "gpt-4o-mini", f"Collect the facts that answer: {QUESTION} Ask anna@example.com if unsure."
            )
            with run.step("embed notes", role="embeddings") as inner:
                notes = inner.openai().embeddings.create(model="text-embedding-3-small", input=step.result)
                inner.result = len(notes.data[0].embedding)
                _line(to, inner, f"a vector of {inner.result:,} numbers")
        with run.step("synthesize", role="writer") as step:
            prompt = f"Write a short answer to: {QUESTION}"
            step.result = _say(to, step, "claude-3-5-sonnet-20241022", prompt, stream=True)
        with run.step("critique", role="critic") as step:
            step.result = _say(to, step, "gpt-4o-mini", "Name the weakest claim of the answer above.")
        run.result = step.result
    _tell(to, f"run {run.id[:8]} ended {run.state}: {run.calls} calls, {run.cost}", style="green")
    return run


def _capped(to: Console, fleet: Fleet) -> Run:
    _title(to, "4. A run with a cap of $0.03: the gateway answers 402, the run ends with what it has")
    drafts: list[str] = []
    with fleet.run("write drafts until satisfied", budget="$0.03") as run, run.step("draft", role="writer") as step:
        while True:
            prompt = f"Draft {len(drafts) + 1}: a better essay about CRDTs."
            drafts.append(_say(to, step, "claude-3-5-sonnet-20241022", prompt, max_tokens=600, output_tokens=480))
            run.result = drafts
    stopped = run.stopped_by
    if stopped is not None:
        _tell(to, f"stopped by {stopped.kind}: 402 {stopped.code}", style="red")
        _tell(to, f"  {stopped.message}", indent=2)
    kept = len(run.result or [])
    _tell(to, f"the program goes on, with {kept} drafts in run.result and {run.cost} spent", style="green")
    return run


def _runaway(to: Console, fleet: Fleet) -> Run:
    _title(to, "5. A runaway loop: the same question, until the role's 30 requests a minute are used")
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
            _tell(to, f"429 {refused.code} after {served} calls in this run", style="red")
            _tell(to, f"  {refused.message}", indent=2)
            step.result = served
    _tell(to, f"the loop ended at {run.cost}; the other roles go on", style="green")
    return run


def _say(to: Console, step: Any, model: str, prompt: str, *, stream: bool = False, **options: Any) -> str:
    """Ask a model as this step's role, print the first words of the answer, and return it."""
    if stream:
        parts = _ask(step, model, prompt, stream=True, **options)
        answer = "".join(part.choices[0].delta.content or "" for part in parts if part.choices)
    else:
        answer = _ask(step, model, prompt, **options).choices[0].message.content or ""
    _line(to, step, answer)
    return answer


def _line(to: Console, step: Any, told: str) -> None:
    """Print what a step came to, cut to one line."""
    from rich.text import Text

    line = Text(f"  {step.label:14} ", style="bold").append(one_line(" ".join(told.split())), style="not bold")
    line.truncate(to.width, overflow="ellipsis")
    to.print(line, soft_wrap=True)


def _ask(
    step: Any, model: str, prompt: str, *, max_tokens: int = 400, output_tokens: int | None = None, **options: Any
) -> Any:
    """Call the unmodified openai client. `output_tokens` scripts the sandbox; real providers never see it."""
    if output_tokens is not None:
        options["extra_body"] = {"nemo_sandbox": {"output_tokens": output_tokens}}
    messages = [{"role": "user", "content": prompt}]
    return step.openai().chat.completions.create(model=model, messages=messages, max_tokens=max_tokens, **options)


def _show(to: Console, runs: list[Run], client: Client) -> None:
    from nemo_agents.admin import observe
    from nemo_agents.cli.tree import print_run

    _title(to, "6. What happened", "nemo-agents runs show")
    for number, run in enumerate(runs):
        if number:
            to.print()
        print_run(to, client.run(observe.run(run.id)), fold=True)


def _status(to: Console, client: Client) -> None:
    from nemo_agents.admin import observe
    from nemo_agents.cli.status import print_status

    _title(to, "7. Where the fleet stands", "nemo-agents status")
    for fleet in client.run(observe.status()):
        print_status(to, fleet)
    problems = client.run(observe.verify()).get("problems", [])
    if problems:
        _tell(to, f"ledger: {'; '.join(problems)}", style="red")
    else:
        _tell(to, "ledger: every balance adds up", style="green")


def _where(to: Console, run: Run, client: Client, *, keep: bool) -> None:
    from nemo_agents.admin import observe

    _title(to, "8. The page of the run that was stopped", "nemo-agents view")
    # Whole, however narrow the terminal: it is there to be opened.
    click.echo(client.run(observe.viewer_link(f"/runs/{run.id}")))
    if not keep:
        _tell(to, "It closes with the demo. To look at it: make demo KEEP=1, or nemo-agents demo --keep")


def _wait_for_interrupt() -> None:
    stop = threading.Event()
    previous: dict[signal.Signals, Any] = {}
    for number in (signal.SIGINT, signal.SIGTERM):
        previous[number] = signal.signal(number, lambda *_: stop.set())
    click.echo("Running until you press Ctrl-C.")
    stop.wait()
    for number, handler in previous.items():
        signal.signal(number, handler)


def _title(to: Console, text: str, command: str = "") -> None:
    from rich.text import Text

    title = Text(f"\n{text}", style="bold cyan")
    to.print(title.append(f":  {command}" if command else "", style="not bold"), soft_wrap=True)


def _tell(to: Console, text: str, *, indent: int = 0, style: str = "") -> None:
    print_wrapped(to, one_line(text), indent=indent, style=style)
