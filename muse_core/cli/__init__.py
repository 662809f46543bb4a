"""The command line: ``muse`` looks at plugins and recipes, ``muse-run`` runs one. Subcommands are imported when asked
for, so that help and listings wait for nothing."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module

import click

from muse_core.commands import Interruptible

CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 110}


TRAINING = "a recipe is trained with muse-run RECIPE, and gone on with by muse-run --resume RUN_DIR"
NOT_HERE = {"run": TRAINING, "train": TRAINING, "resume": TRAINING}
"""What people look for under ``muse``, and where it is."""


class Answering(click.Command):
    """A command whose --help and --version, which click answers before the body and its guard, say what the output does
    not take in a sentence, exit code 3. Ctrl-C before the body, as while a subcommand is imported, ends as within it;
    click would say that it aborted, exit code 1."""

    def main(self, *args, **kwargs):
        try:
            return super().main(*args, **kwargs)
        except OSError:
            from muse_core.cli.errors import drop_what_cannot_be_written, guarded

            drop_what_cannot_be_written()
            with guarded():
                raise

    def make_context(self, *args, **kwargs):
        with Interruptible():
            return super().make_context(*args, **kwargs)

    def invoke(self, ctx: click.Context):
        with Interruptible():
            return super().invoke(ctx)


class LazyGroup(Answering, click.Group):
    """A group with commands that are ``"module:object"`` references with their one-line help, after its own ones."""

    def __init__(self, *args, commands_at: Mapping[str, tuple[str, str]] | None = None, **kwargs):
        super().__init__(*args, **kwargs)
        self.commands_at = dict(commands_at or {})

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*self.commands, *self.commands_at]

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple:
        if args and args[0] in NOT_HERE:
            raise click.UsageError(f"{args[0]!r} is no command of muse: {NOT_HERE[args[0]]}", ctx)
        if args and not args[0].startswith("-") and self.get_command(ctx, args[0]) is None:
            from muse_core.plugins.near import suggestion

            hint = suggestion(args[0], self.list_commands(ctx), "there are")
            raise click.UsageError(f"{args[0]!r} is no command of {ctx.command_path}{hint}", ctx)
        return super().resolve_command(ctx, args)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in self.commands_at:
            return super().get_command(ctx, name)
        module, _, attribute = self.commands_at[name][0].partition(":")
        return getattr(import_module(module), attribute)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            own = [(name, command.get_short_help_str(limit=100)) for name, command in self.commands.items()]
            formatter.write_dl([*own, *((name, text) for name, (_, text) in self.commands_at.items())])


@click.group(
    cls=LazyGroup,
    context_settings=CONTEXT,
    commands_at={
        "plugins": ("muse_core.cli.plugins:plugins", "What is installed, and what is wrong with it."),
        "recipe": ("muse_core.cli.recipe:recipe", "Check, fill and describe recipes."),
        "doctor": ("muse_core.cli.doctor:doctor", "What this machine can run, and why not the rest."),
        "compare": ("muse_core.cli.compare:compare", "Train, tune and compare the recipes of a plan; compare runs."),
        "show": ("muse_core.cli.report:show", "How a run stands, or a line for each run; also as JSON."),
        "report": ("muse_core.cli.report:report", "Draw runs as one page and as pictures; follow one that goes on."),
        "cost": ("muse_core.cli.cost:cost", "Speed, memory and reach of recipes and runs, side by side."),
        "diagnose": ("muse_core.cli.diagnose:diagnose", "What the layers of a run do on a text."),
        "eval": ("muse_core.cli.eval:evaluate", "Loss, length, recall, needles and cost of runs, by suites."),
        "lm-eval": ("muse_core.cli.lm_eval:harness", "lm-evaluation-harness on a run."),
        "bench": ("muse_core.cli.bench:bench", "Measure this machine: the kernels, beside their peers."),
        "selftest": ("muse_core.cli.selftest:selftest", "Put the promises about failures to the test."),
        "gates": ("muse_core.cli.gates:gates", "Run the exit gates of a recipe for real."),
        "generate": ("muse_core.cli.generate:generate", "Continue a prompt with what a run has trained."),
        "compress": ("muse_core.cli.compress:compress", "Make a smaller run of a run, by modes, low rank or integers."),
        "export": ("muse_core.cli.export:export", "Take a run's model to another tool: Hugging Face transformers."),
        "import": ("muse_core.cli.import_weights:import_", "Make a run of weights from a safetensors file."),
    },
)
@click.version_option(package_name="muse-core")
def muse() -> None:
    """A laboratory for language models composed of plugins. Run a recipe with muse-run."""
