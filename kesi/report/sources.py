"""Where the rows of a report come from, read back from the results: commit, versions, device, recipe, parents."""

from collections.abc import Callable, Sequence

from kesi.report.tables import NONE, Row, Table, code, plain
from kesi.runs.results import Run
from kesi.system.provenance import requoted

MOST = 6  # digests in a cell

DIGITS = 12  # of a digest in a table; table.csv and stages.csv have all of them


def commit_of(origin: dict) -> str | None:
    """The commit of a result, and whether the files differed from it."""
    changed = " with uncommitted changes" if origin.get("dirty") else ""
    return origin["commit"] + changed if origin.get("commit") else None


def versions_of(origin: dict) -> str | None:
    """The versions of a result: "python 3.12.1, torch 2.14.1"."""
    return ", ".join(f"{name} {version}" for name, version in (origin.get("versions") or {}).items())


def parents_of(result: dict) -> list[str]:
    """The network_digest of a result's parent; of an ensemble, those of its members."""
    parent = (result.get("parent") or {}).get("network")
    return result.get("members_digests") or [parent] * bool(parent)


def distinct(results: Sequence[dict], describe: Callable[[dict], str | None]) -> str:
    """What results say, each thing once."""
    return "; ".join(dict.fromkeys(filter(None, map(describe, results))))


def starts(results: Sequence[dict]) -> list[dict]:
    """The origins of results, those of the epochs before an interruption included where they are others."""
    return [origin for result in results for origin in (*result.get("earlier", ()), result)]


def provenance(run: Run) -> str:
    """Where a run comes from, as Markdown; commit, versions and device are those of the stages themselves."""
    stages = [result for results in run.seeds.values() for result in results.values()]

    def origins(describe: Callable[[dict], str | None]) -> str:
        return distinct(starts(stages), describe) or distinct([run.info], describe) or "unknown"

    used = run.info.get("recipe") or {}
    epochs = [f"{name} {used[name]['epochs']} (batch {used[name]['batch_size']}, {used[name]['optimizer']}, "
              f"{used[name]['schedule']}, lr {used[name]['lr']})" for name in
              ("baseline", "retrain", *["usual"] * ("usual" in run.retrainings()), "distill") if name in used]
    seconds = sum(result.get("seconds") or 0 for result in stages)
    return "\n".join([
        f"**{plain(run.label)}**", "",
        f"- command: {code(requoted(run.info.get('command') or 'unknown'))}",
        f"- commit: {origins(commit_of)}",
        f"- versions: {plain(origins(versions_of))}",
        f"- device: {plain(origins(lambda one: one.get('device')))}",
        f"- seeds: {', '.join(map(str, sorted(run.seeds)))}",
        f"- recipe: {run.info.get('recipe_hash') or 'unknown'}",
        f"- epochs: {'; '.join(epochs) or 'unknown'}; rounds: {run.rounds}",
        f"- time of all stages together: {seconds:.0f} s"])


def row_origin(row: Row) -> dict:
    """The provenance of a row of the main table, for its CSV: what several seeds differ in is joined by "; "."""
    results = row.run.results(row.stage)
    seeds = [str(seed) for seed, stages in sorted(row.run.seeds.items()) if row.stage in stages]
    return {"seed_numbers": " ".join(seeds),
            "recipe_hash": distinct(results, lambda one: one.get("recipe_hash") or row.run.info.get("recipe_hash")),
            "commit": distinct(starts(results), commit_of), "versions": distinct(starts(results), versions_of),
            "device": distinct(starts(results), lambda one: one.get("device")),
            "command": distinct(starts(results), lambda one: one.get("command") and requoted(one["command"])),
            "parent": distinct(results, lambda one: " ".join(parents_of(one))),
            "network_digest": distinct(results, lambda one: one.get("network_digest"))}


def origins_table(rows: Sequence[Row]) -> Table:
    """The recipe, the commit and the networks behind each row of the main table, one network a seed."""
    def short(digests: Sequence[str]) -> str:
        if len(digests) > MOST:
            return f"{len(digests)} networks, see stages.csv"
        return " ".join(digest[:DIGITS] for digest in digests) or NONE

    body = []
    for row in rows:
        results, origin = row.run.results(row.stage), row_origin(row)
        networks = [one["network_digest"] for one in results if one.get("network_digest")]
        parents = dict.fromkeys(parent for one in results for parent in parents_of(one))
        body.append([row.label, origin["seed_numbers"], origin["recipe_hash"] or NONE,
                     distinct(results, lambda one: (one.get("commit") or "")[:DIGITS] + "+" * bool(one.get("dirty")))
                     or NONE, distinct(results, lambda one: f"torch {(one.get('versions') or {}).get('torch', '?')}"),
                     distinct(results, lambda one: one.get("device")) or NONE, short(networks),
                     short(list(parents))])
    return Table("Rows and networks", ["method", "seeds", "recipe", "commit", "version", "device", "network",
                                       "made from"], body, [
        f"The first {DIGITS} digits of SHA-256 over weights, shapes and masks, one for each seed; an ensemble is made "
        "from its members. A + stands for uncommitted changes. table.csv and stages.csv have all of it whole, with the "
        "commands."])
