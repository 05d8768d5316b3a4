"""Where the rows of a report come from: commit, versions, device, recipe, parents."""

from collections.abc import Callable, Iterator, Sequence

from kesi.checkpoints.records import Origin
from kesi.method.recipes import CODE, name_of
from kesi.report.summary import Row
from kesi.report.tables import NONE, Table
from kesi.runs.record import Ensemble, Result
from kesi.runs.results import Run
from kesi.system.provenance import requoted

MOST = 6  # digests in a cell

DIGITS = 12  # of a digest in a table; table.csv and stages.csv have all of them


def commit_of(origin: Origin) -> str | None:
    """The commit of a result, and whether the files differed from it."""
    changed = " with uncommitted changes" if origin.dirty else ""
    return origin.commit + changed if origin.commit else None


def versions_of(origin: Origin) -> str | None:
    """The versions of a result: "python 3.12.1, torch 2.14.1"."""
    return ", ".join(f"{name} {version}" for name, version in origin.versions.items())


def command_of(origin: Origin) -> str | None:
    """The command that made a result, quoted anew."""
    return requoted(origin.command) if origin.command else None


def parents_of(result: Result | Ensemble) -> list[str]:
    """The digest of the network that a result was made from; of an ensemble, its members'."""
    if isinstance(result, Ensemble):
        return result.members_digests
    return [result.parent.network] if result.parent and result.parent.network else []


def distinct(results: Sequence[Origin], describe: Callable[[Origin], str | None]) -> str:
    """What results say, each thing once."""
    return "; ".join(dict.fromkeys(filter(None, map(describe, results))))


def starts(results: Sequence[Result | Ensemble]) -> list[Origin]:
    """The origins of results, and of their epochs before an interruption."""
    return [origin for result in results for origin in (*getattr(result, "earlier", ()), result)]


def provenance(run: Run) -> list[tuple[str, str]]:
    """Where a run comes from; commit, versions and device are those of the stages themselves."""
    stages = [result for results in run.seeds.values() for result in results.values()]

    def origins(describe: Callable[[Origin], str | None]) -> str:
        return distinct(starts(stages), describe) or distinct([run.record], describe) or "unknown"

    epochs = [f"{name} {used['epochs']} (batch {used['batch_size']}, {used.get('optimizer')}, "
              f"{used['schedule']}, lr {used['lr']})"
              for name, used in run.record.recipe["trainings"].items()]
    seconds = sum(getattr(result, "seconds", 0) for result in stages)
    recipe = filter(None, (name_of(run.record.recipe), run.record.recipe_hash))
    return [("command", command_of(run.record) or "unknown"), *_commands(run),
            ("commit", origins(commit_of)), ("versions", origins(versions_of)),
            ("device", origins(lambda one: one.device)),
            ("seeds", ", ".join(map(str, sorted(run.seeds)))),
            ("recipe", ", ".join(recipe) or "unknown"), *_codes(run),
            ("epochs", f"{'; '.join(epochs)}; rounds: {run.record.rounds}"),
            ("time of all stages together", f"{seconds:.0f} s")]


def _commands(run: Run) -> list[tuple[str, str]]:
    """Those of seeds that were run apart, by commands of their own."""
    by_seed = {seed: distinct(list(results.values()), command_of)
               for seed, results in sorted(run.seeds.items())}
    told = {seed: said for seed, said in by_seed.items() if said}
    if len(set(told.values())) < 2:
        return []
    return [(f"command of seed {seed}", said) for seed, said in told.items()]


def _codes(run: Run) -> list[tuple[str, str]]:
    """Where seeds of a run were made by different code: ("code", "kesi loss 0123456789ab (seed 0),
    ba9876543210 (seed 1)"); nothing where it is the same."""
    found: dict[str, dict[str, list[str]]] = {}
    for seed, results in sorted(run.seeds.items()):
        for stage, result in results.items():
            for name, code in _digests(getattr(result, "settings", {})):
                found.setdefault(f"{stage} {name}", {}).setdefault(code, []).append(str(seed))
    lines = [f"{name} " + ", ".join(f"{code} (seed {' '.join(seeds)})"
                                    for code, seeds in codes.items())
             for name, codes in found.items() if len(codes) > 1]
    return [("code", "; ".join(lines))] if lines else []


def _digests(said: dict, name: str = "") -> Iterator[tuple[str, str]]:
    for key, value in said.items():
        if key in CODE:
            yield name, str(value)
        elif isinstance(value, dict):
            yield from _digests(value, key)


def row_origin(row: Row) -> dict:
    """The provenance of a row for table.csv: what several seeds differ in is joined by "; "."""
    results = list(row.results.values())
    recipe = row.run.record.recipe_hash
    return {"seed_numbers": " ".join(map(str, row.results)),
            "recipe_hash": distinct(results,
                                    lambda one: getattr(one, "recipe_hash", None) or recipe),
            "commit": distinct(starts(results), commit_of),
            "versions": distinct(starts(results), versions_of),
            "device": distinct(starts(results), lambda one: one.device),
            "command": distinct(starts(results), command_of),
            "parent": distinct(results, lambda one: " ".join(parents_of(one))),
            "network_digest": distinct(results, lambda one: getattr(one, "network_digest", None))}


def origins_table(rows: Sequence[Row]) -> Table:
    """The recipe, the commit and the networks behind each row of the main table."""
    def short(digests: Sequence[str]) -> str:
        if len(digests) > MOST:
            return f"{len(digests)} networks, see stages.csv"
        return " ".join(digest[:DIGITS] for digest in digests) or NONE

    def commit(one: Origin) -> str:
        return (one.commit or "")[:DIGITS] + "+" * bool(one.dirty)

    body = []
    for row in rows:
        results, origin = list(row.results.values()), row_origin(row)
        networks = [one.network_digest for one in results if isinstance(one, Result)]
        parents = dict.fromkeys(parent for one in results for parent in parents_of(one))
        torch = distinct(results, lambda one: f"torch {one.versions.get('torch', '?')}")
        cells = [origin["seed_numbers"], origin["recipe_hash"], distinct(results, commit), torch,
                 distinct(results, lambda one: one.device), short(networks), short(list(parents))]
        body.append([row.label, *(cell or NONE for cell in cells)])
    columns = ["method", "seeds", "recipe", "commit", "version", "device", "network", "made from"]
    return Table("Rows and networks", columns, body, [
        f"The first {DIGITS} digits of SHA-256 over weights, shapes and masks, one for each seed; "
        "an ensemble is made from its members. A + stands for uncommitted changes. table.csv and "
        "stages.csv have all of it whole, with the commands."])
